"""Which services a stop is about (seed 5). All of it is settled before the first one is stopped.

What was named is stopped without a question. Without a name it is the one started last, and that the user confirms.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from inference_service import output, reconciliation, routing
from inference_service.contracts import ServiceEntry
from inference_service.errors import Need
from inference_service.registry import Registry, Snapshot


@dataclass(frozen=True)
class Chosen:
    """The services to stop, and the job_ids that no registry and no platform knows (any more)."""

    entries: tuple[ServiceEntry, ...]
    already_gone: tuple[str, ...] = ()


def choose(registry: Registry, job_ids: Sequence[str], everything: bool, confirmed: bool) -> Chosen:
    """The services meant by these options of stop_service.py.

    Raises:
        BadInput: a job_id is neither registered nor a whole job_id; the message lists what is there.
        DecisionNeeded: the latest was meant, and nobody has confirmed it.
    """
    snapshot = registry.read()
    if job_ids:
        return _named(registry, snapshot, job_ids)
    if everything or not snapshot.services:
        return Chosen(tuple(snapshot.services.values()))
    if confirmed and snapshot.latest is not None:
        return Chosen((snapshot.services[snapshot.latest],))
    answer = output.decide([_question(snapshot)])["job_id"]
    return Chosen((snapshot.services[answer],))


def _named(registry: Registry, snapshot: Snapshot, job_ids: Sequence[str]) -> Chosen:
    entries: dict[str, ServiceEntry] = {}
    gone = []
    for job_id in dict.fromkeys(job_ids):
        if job_id not in snapshot.services and _is_job_id(job_id):
            # It was stopped already, or the registry has lost it: the platforms know.
            running = reconciliation.find(job_id)
            if running is None:
                gone.append(job_id)
            else:
                entries[job_id] = registry.commit(running)
            continue
        entry = routing.find(snapshot, job_id)
        entries[entry.job_id] = entry
    return Chosen(tuple(entries.values()), tuple(gone))


def _is_job_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _question(snapshot: Snapshot) -> Need:
    latest = snapshot.services.get(snapshot.latest or "")
    others = [entry for entry in snapshot.services.values() if entry is not latest]
    if latest is None:
        question, answer_with = "None of these runs. Which one should be cleaned up?", "--job-id J, or --all"
    else:
        question = f"Stop {latest.job_id} ({latest.network_arch}, {latest.host_url}), which was started last?"
        answer_with = "--yes for that one, or --job-id J"
    options = [
        {
            "job_id": entry.job_id,
            "network_arch": entry.network_arch,
            "host_url": entry.host_url,
            "started_at": entry.started_at,
            "status": entry.status,
        }
        for entry in ([latest] if latest else []) + others
    ]
    return Need(name="job_id", question=question, answer_with=answer_with, options=options)

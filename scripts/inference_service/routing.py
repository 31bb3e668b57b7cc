"""Which service a request goes to (seed 6.0): the one that was named, the only one, or the one that the user chooses.

`latest` is never a fallback: where several services run, the user decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference_service import references
from inference_service.contracts import ServiceEntry
from inference_service.errors import BadInput, DecisionNeeded, Need
from inference_service.registry import GONE, RUNNING, STARTING, Snapshot

_SHORTEST_PREFIX = 8


def resolve(snapshot: Snapshot, job_id: str | None = None, network_arch: str | None = None) -> ServiceEntry:
    """The service that a request with this job_id, or for this arch, or with neither goes to.

    A job_id may be cut short after its first 8 characters. A service that is being started takes part only when it is
    named, or when no other one runs.

    Raises:
        BadInput: there is no such service, it is gone, or job_id and network_arch contradict each other.
        DecisionNeeded: several services could be meant; the options list them.
    """
    if job_id:
        return _named(snapshot, job_id, network_arch)
    present = [entry for entry in snapshot.services.values() if entry.status != GONE]
    if network_arch:
        present = [entry for entry in present if entry.network_arch == network_arch]
    running = [entry for entry in present if entry.status == RUNNING]
    starting = [entry for entry in present if entry.status == STARTING]
    candidates = running or starting
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise _choice(present, f"Which {network_arch or 'service'} should get this request?")
    raise _nothing_runs(network_arch)


def resolve_or_ask(snapshot: Snapshot, job_id: str | None = None, network_arch: str | None = None) -> ServiceEntry:
    """The same, and at a terminal the user is asked where several services could be meant."""
    from inference_service import output

    try:
        return resolve(snapshot, job_id, network_arch)
    except DecisionNeeded as open_question:
        return resolve(snapshot, output.decide(open_question.needs)["job_id"], network_arch)


def find(snapshot: Snapshot, job_id: str) -> ServiceEntry:
    """The service with this job_id, which may be cut short after its first 8 characters, whatever its status.

    Raises:
        BadInput: there is none.
        DecisionNeeded: several begin like this.
    """
    return snapshot.services.get(job_id) or _by_prefix(snapshot, job_id)


def _named(snapshot: Snapshot, job_id: str, network_arch: str | None) -> ServiceEntry:
    entry = find(snapshot, job_id)
    if network_arch and entry.network_arch != network_arch:
        raise BadInput(
            "network_arch_mismatch",
            f"service {entry.job_id} runs {entry.network_arch}, not {network_arch}",
            "give the one that is meant, --job-id or --network-arch",
            job_id=entry.job_id,
        )
    if entry.status == GONE:
        raise BadInput(
            "service_gone",
            f"service {entry.job_id} ({entry.network_arch}) does not run on {entry.platform} any more",
            f"clean it up: stop_service.py --job-id {entry.job_id} (all such: registry.py reconcile --remove-gone)",
            job_id=entry.job_id,
        )
    return entry


def _by_prefix(snapshot: Snapshot, prefix: str) -> ServiceEntry:
    meant = []
    if len(prefix) >= _SHORTEST_PREFIX:
        meant = [entry for job_id, entry in snapshot.services.items() if job_id.startswith(prefix)]
    if not meant:
        raise BadInput(
            "unknown_job_id",
            f"there is no service with job_id {prefix!r}",
            "see those there are: registry.py list",
            job_ids=list(snapshot.services),
        )
    if len(meant) > 1:
        raise _choice(meant, f"Which of the services whose job_id begins with {prefix}?")
    return meant[0]


def _choice(entries: Sequence[ServiceEntry], question: str) -> DecisionNeeded:
    options = [
        {
            "job_id": entry.job_id,
            "network_arch": entry.network_arch,
            "host_url": entry.host_url,
            "started_at": entry.started_at,
            "status": entry.status,
        }
        for entry in entries
    ]
    return DecisionNeeded([Need(name="job_id", question=question, answer_with="--job-id JOB_ID", options=options)])


def _nothing_runs(network_arch: str | None) -> BadInput:
    if network_arch:
        known = references.load().arch(network_arch)
        return BadInput(
            "no_service",
            f"no {known.network_arch} service runs",
            f"start one: start_service.py --network-arch {known.network_arch} --model-path M --platform P",
        )
    return BadInput(
        "no_service", "no service runs", "start one: start_service.py --network-arch A --model-path M --platform P"
    )

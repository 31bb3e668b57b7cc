"""Machines that were created for services bill until they are deleted: whether to, only the user can say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inference_service import output
from inference_service.contracts import ServiceEntry
from inference_service.errors import Need, ToolError

_CREATED, _DELETE = "created_instance", "delete_instance"


def decided(entries: Sequence[ServiceEntry], answer: str | None) -> tuple[ServiceEntry, ...]:
    """The entries with the user's word in their extras, each machine asked for once. `answer` is yes, no or None.

    Raises:
        DecisionNeeded: there is such a machine, no answer was given, and nobody is at a terminal.
    """
    machines = {_machine(entry): entry for entry in entries if entry.extras.get(_CREATED)}
    if not machines:
        return tuple(entries)
    answers = dict.fromkeys(machines, answer)
    if answer is None:
        needs = [_question(machine, entry) for machine, entry in machines.items()]
        answers.update(output.decide(needs))
    return tuple(_with_word(entry, answers.get(_machine(entry))) for entry in entries)


def _machine(entry: ServiceEntry) -> str:
    return str(entry.extras.get("instance"))


def _question(machine: str, entry: ServiceEntry) -> Need:
    kind = ", ".join(str(entry.extras[key]) for key in ("instance_type", "gpu") if entry.extras.get(key))
    since: Any = entry.extras.get("instance_created_at")
    told = ", ".join(
        part for part in (entry.platform, kind, since and f"created {since}", _cost_so_far(entry, since)) if part
    )
    return Need(
        machine,
        f"Delete the machine {machine} ({told}) with its service? It bills until it is deleted; one that other services"
        " are on is kept.",
        "--delete-instance yes, or no",
        options=[{"delete_instance": "yes"}, {"delete_instance": "no"}],
    )


def _cost_so_far(entry: ServiceEntry, since: Any) -> str:
    """What the machine has cost since it was created, in words; empty where there is no price for it."""
    from datetime import datetime, timezone

    from inference_service import pricing

    began = since if isinstance(since, str) else entry.started_at
    try:
        cost = pricing.cost_so_far(replace(entry, started_at=began), pricing.gpu_prices(), datetime.now(timezone.utc))
    except ToolError:
        # Prices that cannot be read are no reason to keep a machine that the user wants to be rid of.
        return ""
    return "" if cost.usd is None else f"{cost.usd} USD so far"


def _with_word(entry: ServiceEntry, answer: str | None) -> ServiceEntry:
    if answer is None or not entry.extras.get(_CREATED):
        return entry
    return replace(entry, extras={**entry.extras, _DELETE: answer == "yes"})

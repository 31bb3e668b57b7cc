"""Machines that were created for services bill until they are deleted: whether to, only the user can say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inference_service import output
from inference_service.contracts import ServiceEntry
from inference_service.errors import Need

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
    told = f"{entry.platform}{f', {kind}' if kind else ''}{f', created {since}' if since else ''}"
    return Need(
        machine,
        f"Delete the machine {machine} ({told}) with its service? It bills until it is deleted; one that other services"
        " are on is kept.",
        "--delete-instance yes, or no",
        options=[{"delete_instance": "yes"}, {"delete_instance": "no"}],
    )


def _with_word(entry: ServiceEntry, answer: str | None) -> ServiceEntry:
    if answer is None or not entry.extras.get(_CREATED):
        return entry
    return replace(entry, extras={**entry.extras, _DELETE: answer == "yes"})

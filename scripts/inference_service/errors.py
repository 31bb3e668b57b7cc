"""Errors are part of the interface: what happened, and what to do next.

Each class is one exit status of the scripts' contract, so that raising is all a module has to do:

    1  ToolError       it failed
    2  BadInput        the input was refused; nothing was changed
    3  DecisionNeeded  the user has to decide; nothing was changed
    4  NotReady        not ready within the timeout; try again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class ToolError(Exception):
    """Something failed.

    `type` is a stable snake_case word for programs, `message` says what happened and names the value, `fix` says what
    to do next (a command wherever there is one). `details` are further JSON fields of the error.
    """

    exit_status = 1

    def __init__(self, type: str, message: str, fix: str = "", **details: Any) -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.fix = fix
        self.details = details

    def __str__(self) -> str:
        # Whoever passes an error on may add to its message what became of the thing.
        return self.message

    def document(self) -> dict[str, Any]:
        """The JSON document that a script prints for this error."""
        return {"error": {"type": self.type, "message": self.message, "fix": self.fix, **self.details}}


class BadInput(ToolError):
    """What was asked for cannot be done as asked; nothing was changed."""

    exit_status = 2


class NotReady(ToolError):
    """The service was not ready within the timeout; it may become so."""

    exit_status = 4


@dataclass(frozen=True)
class Need:
    """One question that only the user can answer.

    `options` lists the choices where the question is a choice; `type`, `default` and `range` describe a value
    where it is one, `required` that no default will do. `answer_with` is the command-line option that gives the answer.
    """

    name: str
    question: str
    answer_with: str
    options: Sequence[Mapping[str, Any]] | None = None
    type: str | None = None
    default: Any = None
    range: str | None = None
    required: bool = False

    def document(self) -> dict[str, Any]:
        """The question as JSON; what does not apply is left out, a null default of a value is kept."""
        fields = asdict(self)
        if self.options is None:
            del fields["options"]
        if self.type is None:
            for name in ("type", "default", "range", "required"):
                del fields[name]
        elif self.range is None:
            del fields["range"]
        return fields


class DecisionNeeded(Exception):
    """The user has to decide something, and nobody is at a terminal to be asked."""

    exit_status = 3

    def __init__(self, needs: Sequence[Need]) -> None:
        super().__init__("; ".join(need.question for need in needs))
        self.needs = tuple(needs)

    def document(self) -> dict[str, Any]:
        """The JSON document that a script prints: each question with its options, or its type, default and range."""
        return {"needs": [need.document() for need in self.needs]}


class PortTaken(ToolError):
    """Somebody else bound the port between its being chosen and its being used; the starter chooses another."""

    def __init__(self, port: int) -> None:
        super().__init__(
            "port_taken", f"port {port} of this machine was taken by another program", "choose another with --host-port"
        )
        self.port = port

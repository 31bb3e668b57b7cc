"""Questions to a person at a terminal, all in one round (seed 6.0, 6.1). Answers are read verbatim."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from inference_service import interruption
from inference_service.errors import Need


def ask(needs: Sequence[Need]) -> dict[str, str]:
    """The answers by the needs' names. Enter alone takes a value's default: that name is left out."""
    answers: dict[str, str] = {}
    for need in needs:
        answer = _choose(need) if need.options is not None else _enter(need)
        if answer:
            answers[need.name] = answer
    return answers


def _choose(need: Need) -> str:
    options = list(need.options or ())
    print(need.question, file=sys.stderr)
    for number, option in enumerate(options, 1):
        print(f"  {number}. " + "  ".join(str(value) for value in option.values()), file=sys.stderr)
    while True:
        answer = _read(f"1-{len(options)}: ")
        if answer.isdecimal() and 1 <= int(answer) <= len(options):
            return str(next(iter(options[int(answer) - 1].values())))


def _enter(need: Need) -> str:
    described = ", ".join(part for part in (need.type, need.range) if part)
    default = "left out" if need.default is None else need.default
    while True:
        answer = _read(f"{need.question} ({described}) [{default}]: ")
        if answer or not need.required:
            return answer


def _read(prompt: str) -> str:
    # input() would write its prompt to standard output, which belongs to the script's one document.
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        message = "no answer: the terminal was closed, nothing was done"
        raise interruption.telling(KeyboardInterrupt(), message, "run it again at a terminal, or give the options")
    return line.rstrip("\n")

"""What every script does alike: one JSON document on standard output, progress on standard error, an exit status.

A script is a parser and a function from its arguments to a document; `run` keeps the contract around them, so that no
error, Ctrl-C or closed pipe ever ends in a traceback or in half a document.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from inference_service import interruption
from inference_service.errors import BadInput, DecisionNeeded, Need, ToolError

Document = Mapping[str, Any]
Program = Callable[[argparse.Namespace], Document | None]
Render = Callable[[Document], None]

INTERRUPTED = 130
TERMINATED = 143

_lines_were_printed = False


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt it passes every `except Exception`, and the same clean-up runs."""


class ArgumentParser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints keep the scripts' contract: BadInput, hence a document and exit status 2."""

    def __init__(self, description: str, **options: Any) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )
        self.add_argument("--json", action="store_true", help="print the JSON document even on a terminal")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise BadInput("usage", message, f"see {self.prog} --help")


def run(parser: argparse.ArgumentParser, program: Program, render: Render | None = None) -> int:
    """Parse the command line, run the program, print its document; the exit status.

    `render` prints the document for a person at a terminal; without one, its fields are listed. A program that has
    already printed all it has to say (a stream) returns None.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(parser, program, render or _list_fields)
    except BrokenPipeError:
        # The reader went away. Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(parser: argparse.ArgumentParser, program: Program, render: Render) -> int:
    as_json = "--json" in sys.argv or not sys.stdout.isatty()
    try:
        document = program(parser.parse_args())
        if document is not None:
            _print(document, as_json, render)
        sys.stdout.flush()
        return 0
    except (ToolError, DecisionNeeded) as error:
        _print(error.document(), as_json, _show_problem)
        return error.exit_status
    except ModuleNotFoundError as error:
        print(json.dumps(_missing_dependency(error), indent=2))
        return 1
    except (KeyboardInterrupt, Terminated) as error:
        # Another Ctrl-C must not cut the document short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Redaction may be the very import that was interrupted; what is said then holds no value of anything.
        (_print if interruption.told(error) else _show)(_interruption(error), as_json, _show_problem)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED


def decide(needs: Sequence[Need]) -> dict[str, str]:
    """The user's answers by name, all asked in one round; an empty answer to a value takes its default (left out here).

    Raises:
        DecisionNeeded: nobody is at a terminal.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise DecisionNeeded(needs)
    from inference_service import asking

    return asking.ask(needs)


def interactive() -> bool:
    """Whether a person is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def print_line(document: Document) -> None:
    """One line of a JSON-lines stream on standard output, secrets removed. An error after it is one line as well."""
    global _lines_were_printed
    from inference_service import secrets

    _lines_were_printed = True
    print(json.dumps(secrets.redact_document(document), ensure_ascii=False), flush=True)


def note(message: str) -> None:
    """One diagnostic line on standard error, secrets removed."""
    from inference_service import secrets

    print(secrets.redact(message), file=sys.stderr, flush=True)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # A second TERM must not break into the clean-up that the first one started.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _interruption(error: BaseException) -> Document:
    # Whoever was interrupted in the middle of something says what became of it, and what to do now.
    nothing = ("interrupted; nothing was left behind", "run it again when you are ready")
    message, fix = interruption.told(error) or nothing
    return {"error": {"type": "interrupted", "message": message, "fix": fix}}


def _missing_dependency(error: ModuleNotFoundError) -> Document:
    from inference_service import paths

    # Redaction and rendering need dependencies too, so this one document is printed as it is.
    venv = paths.SKILL / ".venv" / "bin" / "python"
    fix = f"run it with {venv}" if venv.exists() else f"make -C '{paths.SKILL}' venv, then run it with {venv}"
    message = f"the Python package {error.name!r} is not installed for {sys.executable}"
    return {"error": {"type": "missing_dependency", "message": message, "fix": fix}}


def _print(document: Document, as_json: bool, render: Render) -> None:
    _show(_without_secrets(document), as_json, render)


def _show(document: Document, as_json: bool, render: Render) -> None:
    if as_json:
        print(json.dumps(document, indent=None if _lines_were_printed else 2, ensure_ascii=False), flush=True)
    else:
        render(document)


def _without_secrets(document: Document) -> Document:
    from inference_service import secrets

    try:
        cleaned: Document = secrets.redact_document(document)
        return cleaned
    except ToolError:
        # The reference data itself is broken, and so the list of secrets is not known. The document that says so was
        # made by reference validation, which sees no environment.
        return document


def _list_fields(document: Document) -> None:
    width = max(map(len, document), default=0)
    for name, value in document.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{name:<{width}}  {text}")


def _show_problem(document: Document) -> None:
    if "needs" in document:
        for need in document["needs"]:
            print(f"decide: {need['question']}  ({need['answer_with']})", file=sys.stderr)
        return
    error = document["error"]
    print(f"error: {error['message']}", file=sys.stderr)
    if error["fix"]:
        print(f"  fix: {error['fix']}", file=sys.stderr)
    for line in error.get("log_tail", ()):
        print(f"  | {line}", file=sys.stderr)

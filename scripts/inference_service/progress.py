"""Progress on standard error: a live line on a terminal, JSON lines with --events, plain lines otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inference_service import secrets
from inference_service.contracts import Progress, Report


@contextmanager
def reporting(events: bool = False) -> Iterator[Report]:
    """A `Report` to hand to whatever takes time; it is tidied away at the end of the block.

    `events`: every step as one JSON line. Without it and without a terminal, a step is a plain line, and a step that
    says the same as the one before is not said again.
    """
    if events:
        yield _report_event
    elif sys.stderr.isatty():
        with _live_line() as report:
            yield report
    else:
        yield _PlainLines().report


def _report_event(progress: Progress) -> None:
    event: dict[str, Any] = {"event": "progress", "stage": progress.stage, "message": progress.message}
    if progress.fraction is not None:
        event["fraction"] = round(progress.fraction, 3)
    if progress.details:
        event["details"] = dict(progress.details)
    print(json.dumps(secrets.redact_document(event), ensure_ascii=False), file=sys.stderr, flush=True)


class _PlainLines:
    def __init__(self) -> None:
        self._last = ""

    def report(self, progress: Progress) -> None:
        text = secrets.redact(f"{progress.stage}: {progress.message}" if progress.message else progress.stage)
        if text != self._last:
            self._last = text
            print(text, file=sys.stderr, flush=True)


@contextmanager
def _live_line() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as live:
        task = live.add_task("", total=None)

        def report(progress: Progress) -> None:
            text = secrets.redact(f"{progress.stage}: {progress.message}")
            total = None if progress.fraction is None else 1.0
            live.update(task, description=text, total=total, completed=progress.fraction or 0.0)

        yield report

"""registry.py's documents for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from inference_service import registry_entries

_COLOURS = {"running": "green", "starting": "yellow", "gone": "red"}
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_OUTCOMES = ("adopted", "settled", "gone", "removed")


def show(document: Mapping[str, Any]) -> None:
    """Print the services as a table, `*` at the latest one, and above it what a command did."""
    if "path" in document:
        print(document["path"])
        return
    from rich.console import Console

    console = Console()
    for outcome in _OUTCOMES:
        for job_id in document.get(outcome, ()):
            console.print(f"{outcome}: {job_id}", markup=False)
    for item in document.get("unknown", ()):
        console.print(f"unknown: {item['job_id']} ({item['platform']}: {item['reason']})", markup=False)
    if not document["services"]:
        console.print("no service is registered")
        return
    console.print(_table(document))


def age(started_at: str, now: datetime | None = None) -> str:
    """How long ago that was, in its largest unit, like `5 min`; empty where the moment is not known."""
    moment = registry_entries.utc(started_at)
    if moment is None:
        return ""
    seconds = max(0, int(((now or datetime.now(timezone.utc)) - datetime.fromisoformat(moment)).total_seconds()))
    return next((f"{seconds // size} {unit}" for unit, size in _UNITS if seconds >= size), "0 s")


def _table(document: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "job_id", "network_arch", "platform", "state", "host_url", "age", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[1].no_wrap = True  # It is there to be copied.
    for entry in document["services"]:
        table.add_row(
            "*" if entry["job_id"] == document["latest"] else "",
            Text(entry["job_id"]),
            Text(entry["network_arch"]),
            Text(entry["platform"]),
            Text(entry["status"], style=_COLOURS.get(entry["status"], "")),
            Text(entry["host_url"]),
            age(entry["started_at"]),
        )
    return table

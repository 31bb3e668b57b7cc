"""registry.py's documents for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from inference_service import registry_entries

_COLOURS = {"running": "green", "starting": "yellow", "pending": "yellow", "unknown": "yellow"}
_ENDED = ("gone", "exited", "failed")
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
    seconds = _seconds_since(started_at, now)
    return "" if seconds is None else _span(max(0, int(seconds)))


def _seconds_since(written: str, now: datetime | None = None) -> float | None:
    moment = registry_entries.utc(written)
    if moment is None:
        return None
    return ((now or datetime.now(timezone.utc)) - datetime.fromisoformat(moment)).total_seconds()


def _span(seconds: int) -> str:
    return next((f"{seconds // size} {unit}" for unit, size in _UNITS if seconds >= size), "0 s")


def _table(document: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    live = any("state" in entry for entry in document["services"])
    columns = ["", "job_id", "network_arch", "platform", "state", "host_url", "age"]
    table = Table(*columns, *(("idle", "cost", "time left") if live else ()), box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[1].no_wrap = True  # It is there to be copied.
    for entry in document["services"]:
        state = _state(entry)
        table.add_row(
            "*" if entry["job_id"] == document["latest"] else "",
            Text(entry["job_id"]),
            Text(entry["network_arch"]),
            Text(entry["platform"]),
            Text(state, style="red" if state in _ENDED else _COLOURS.get(state, "")),
            Text(entry["host_url"]),
            age(entry["started_at"]),
            *(_live_cells(entry) if live else ()),
        )
    return table


def _state(entry: Mapping[str, Any]) -> str:
    """What the platform says of one that runs by the registry, otherwise the registry's own word."""
    return str(entry["state"]).lower() if entry["status"] == "running" and "state" in entry else str(entry["status"])


def _live_cells(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    idle, cost = entry["idle_minutes"], entry["cost_usd"]
    past = _seconds_since(entry["stop_after"]) if entry["stop_after"] else None
    return (
        "" if idle is None else _span(int(idle * 60)),
        "unpriced" if cost is None else f"{cost} USD",
        "" if past is None else "expired" if past >= 0 else _span(int(-past)),
    )

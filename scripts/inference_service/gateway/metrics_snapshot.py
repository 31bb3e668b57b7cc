"""What one process counted as JSON, the files in which worker processes leave it for each other, and their sum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

FORMAT = 1
_SUFFIX = ".metrics.json"

WORK_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0)
"""Upper bounds, in seconds, for what should be short: the queue, connecting, our own overhead."""
ANSWER_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds, in seconds, for what a model takes."""

BREAKER_STATES = ("closed", "half_open", "open")

# Name, buckets and help of each latency, in the order in which a latency series keeps them.
LATENCIES = (
    ("queue_seconds", WORK_BUCKETS, "Waiting for a free place of the route."),
    ("upstream_connect_seconds", WORK_BUCKETS, "Connecting to the upstream; 0 on a kept connection."),
    ("overhead_seconds", WORK_BUCKETS, "The gateway's own work."),
    ("time_to_first_byte_seconds", ANSWER_BUCKETS, "From the request's first byte to the answer's."),
    ("time_to_first_token_seconds", ANSWER_BUCKETS, "From the request's first byte to the first produced token."),
    ("request_duration_seconds", ANSWER_BUCKETS, "From the request's first byte to the answer's last."),
)

# What a usage series counts, in its order. input_tokens is all of the prompt; the text splits it into its parts.
USAGE = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "estimated", "unpriced", "retries")

Snapshot = dict[str, Any]
"""What one process counted, as JSON; `merge` adds several."""


@dataclass(frozen=True)
class Gauges:
    """What is true of one worker process at this moment. Keys are upstreams (`in_flight`: routes)."""

    in_flight: Mapping[str, int] = field(default_factory=dict)
    queued: Mapping[str, int] = field(default_factory=dict)
    breakers: Mapping[str, str] = field(default_factory=dict)
    """Per upstream one of BREAKER_STATES."""
    journal_rows: int = 0
    """Rows that are durable in the journal and not in the database yet."""
    journal_bytes: int = 0


@dataclass
class Merged:
    """The sum of several snapshots: per series, then what is true of all processes together now."""

    requests: dict[tuple[str, ...], int] = field(default_factory=dict)
    """By route, caller, model, status, error type."""
    usage: dict[tuple[str, ...], tuple[list[int], Decimal]] = field(default_factory=dict)
    """By route, caller, model: counts in the order of USAGE, and the cost in USD."""
    latencies: dict[tuple[str, ...], list[list[Any]]] = field(default_factory=dict)
    """By route, caller: in the order of LATENCIES a list of counts per bucket and the sum."""
    in_flight: dict[str, int] = field(default_factory=dict)
    queued: dict[str, int] = field(default_factory=dict)
    breakers: dict[tuple[str, str], int] = field(default_factory=dict)
    """By upstream and state: worker processes."""
    journal_rows: int = 0
    journal_bytes: int = 0
    workers: int = 0


def merge(snapshots: Iterable[Snapshot], now: float | None = None, stale_seconds: float = 10) -> Merged:
    """The sum of several processes' snapshots. One of another format is left out.

    A process that has ended is still counted, or the sums would fall and Prometheus would take that for a restart of
    all; but what it had in flight is gone: gauges of snapshots that are older than `stale_seconds` before `now` do not
    count.
    """
    merged = Merged()
    for snapshot in snapshots:
        if snapshot.get("format") != FORMAT:
            continue
        _add_counts(merged, snapshot)
        gauges, at = snapshot["gauges"], snapshot["at"]
        if gauges is not None and not (now is not None and at is not None and at < now - stale_seconds):
            _add_gauges(merged, gauges)
    return merged


class SnapshotFiles:
    """The snapshots of one gateway's worker processes, a file each, in a directory made anew when the gateway starts.

    `worker` names this process among them.
    """

    def __init__(self, directory: Path, worker: str) -> None:
        self._directory = directory
        self._own = directory / f"{worker}{_SUFFIX}"

    def write(self, snapshot: bytes) -> None:
        """Replace this process's file by what `dumps` made; whoever reads sees the old one or the new one.

        Raises:
            OSError: it cannot be written.
        """
        scratch = self._own.with_suffix(".new")
        scratch.write_bytes(snapshot)
        scratch.replace(self._own)

    def others(self) -> list[Snapshot]:
        """What the other processes wrote last. A file that is not readable is left out."""
        snapshots = []
        for file in sorted(self._directory.glob(f"*{_SUFFIX}")):
            if file != self._own:
                with contextlib.suppress(OSError, ValueError):
                    snapshots.append(orjson.loads(file.read_bytes()))
        return snapshots


def dumps(snapshot: Snapshot) -> bytes:
    """A snapshot as it is kept in a file."""
    return orjson.dumps(snapshot)


def _add_counts(merged: Merged, snapshot: Snapshot) -> None:
    for *labels, count in snapshot["requests"]:
        key = tuple(labels)
        merged.requests[key] = merged.requests.get(key, 0) + count
    for *labels, counts, cost in snapshot["usage"]:
        key = tuple(labels)
        before, spent = merged.usage.get(key, ([0] * len(USAGE), Decimal(0)))
        merged.usage[key] = [a + b for a, b in zip(before, counts, strict=True)], spent + Decimal(cost)
    for *labels, series in snapshot["latencies"]:
        key = tuple(labels)
        known = merged.latencies.get(key)
        merged.latencies[key] = (
            [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(known, series, strict=True)]
            if known
            else series
        )


def _add_gauges(merged: Merged, gauges: Mapping[str, Any]) -> None:
    merged.workers += 1
    merged.journal_rows += gauges["journal_rows"]
    merged.journal_bytes += gauges["journal_bytes"]
    for total, name in ((merged.in_flight, "in_flight"), (merged.queued, "queued")):
        for key, count in gauges[name].items():
            total[key] = total.get(key, 0) + count
    for upstream, state in gauges["breakers"].items():
        merged.breakers[upstream, state] = merged.breakers.get((upstream, state), 0) + 1

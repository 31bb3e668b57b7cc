"""The request log counted per bucket of time, in the database.

A bucket that is over does not change any more, but for rows that arrive late out of a journal or are deleted when they
are old. So what was counted is kept, and looked at again now and then: are there as many rows as there were? A page
that asks every few seconds costs the database the newest bucket each time, not the day.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from inference_service.gateway.dashboard import latencies
from inference_service.gateway.dashboard.latencies import Bins
from inference_service.gateway.dashboard.summing import Bucket, Cell
from inference_service.gateway.dashboard.view import View
from inference_service.sql import Cursor, Database

_SETTLED_SECONDS = 120
_LOOK_AGAIN_SECONDS = 60
_MOST_KEPT = 3000
_MOST_VIEWS = 12
# Sorting a day's rows keeps a core busy for a second or two; where there are two, both are.
_CORES = os.cpu_count() or 1
_FEW = 8

# A served request must have a cost; one that was refused or failed before it used anything cost nothing.
_UNPRICED = "cost_usd IS NULL AND (http_status < 300 OR input_tokens > 0 OR output_tokens > 0)"

# The model of a request that was never routed is whatever its client wrote.
_CELLS = f"""
    SELECT caller, team, CASE WHEN network_arch = '' THEN NULL ELSE model END, route, http_status, error_type,
        COUNT(*), SUM(input_tokens), SUM(output_tokens), SUM(cached_tokens),
        SUM(CAST(cost_usd AS DOUBLE PRECISION)), SUM(CASE WHEN {_UNPRICED} THEN 1 ELSE 0 END),
        COUNT(CASE WHEN usage_estimated THEN 1 END)
    FROM requests WHERE time >= :since AND time < :until GROUP BY 1, 2, 3, 4, 5, 6
"""  # noqa: S608
_ROWS = "SELECT COUNT(*) FROM requests WHERE time >= :since AND time < :until"


Made = TypeVar("Made")


@dataclass
class _Counted:
    """A bucket's cells, and its sums and latencies under the views that were asked for last."""

    cells: list[Cell]
    rows: int
    good_until: float = 0.0
    sums: OrderedDict[tuple[Any, ...], Bucket] = field(default_factory=OrderedDict)
    bins: OrderedDict[tuple[Any, ...], Bins] = field(default_factory=OrderedDict)


@dataclass(frozen=True)
class Counts:
    """Per bucket of a view: its sums under the view's filters and without any, and its latencies by route."""

    buckets: list[Bucket]
    unfiltered: list[Bucket]
    bins: list[Bins]


class Counter:
    """Counts one database's requests. Threads may share it; one counts at a time, and the others find it done."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], _Counted] = OrderedDict()

    def count(self, view: View, now: float) -> Counts:
        """The view's counts.

        Raises:
            DatabaseUnusable: the request log cannot be read.
        """
        with self._lock:
            starts = list(view.buckets)
            found: dict[int, _Counted] = {}

            def work(mine: Sequence[int]) -> None:
                with self._database.snapshot() as cursor:
                    for start in mine:
                        found[start] = self._bucket(cursor, start, view)

            missing = sum((start, view.bucket_seconds) not in self._kept for start in starts)
            if missing > _FEW and _CORES > 1:
                _beside(lambda: work(starts[::2]), lambda: work(starts[1::2]))
            else:
                work(starts)
            counted = [found[start] for start in starts]
            self._keep(view, starts, counted, now)
            everything = View(view.since, view.until, view.bucket_seconds)
            return Counts(
                [_sums(bucket, view) for bucket in counted],
                [_sums(bucket, everything) for bucket in counted],
                [bucket.bins[_latency_key(view)] for bucket in counted],
            )

    def _bucket(self, cursor: Cursor, start: int, view: View) -> _Counted:
        span = {"since": _moment(start), "until": _moment(start + view.bucket_seconds)}
        counted = self._kept.get((start, view.bucket_seconds))
        if counted is not None and counted.good_until < time.monotonic():
            (rows,) = cursor.execute(_ROWS, span).fetchone() or (0,)
            if rows == counted.rows:
                counted.good_until = time.monotonic() + _LOOK_AGAIN_SECONDS
            else:
                counted = None
        if counted is None:
            cells = [_cell(row) for row in cursor.execute(_CELLS, span)]
            counted = _Counted(cells, sum(cell.requests for cell in cells))
        _remembered(
            counted.bins,
            _latency_key(view),
            lambda: latencies.count(cursor, self._database.dialect, view, span),
        )
        return counted

    def _keep(self, view: View, starts: Sequence[int], counted: Sequence[_Counted], now: float) -> None:
        for start, bucket in zip(starts, counted, strict=True):
            if start + view.bucket_seconds < now - _SETTLED_SECONDS:
                bucket.good_until = bucket.good_until or time.monotonic() + _LOOK_AGAIN_SECONDS
                self._kept[start, view.bucket_seconds] = bucket
                self._kept.move_to_end((start, view.bucket_seconds))
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)


def _beside(one: Callable[[], None], other: Callable[[], None]) -> None:
    """Do both at once; raises what either raised."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            other()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="dashboard", daemon=True)
    thread.start()
    try:
        one()
    finally:
        thread.join()
    if failures:
        raise failures[0]


def _sums(counted: _Counted, view: View) -> Bucket:
    return _remembered(counted.sums, _filter_key(view), lambda: Bucket.of(counted.cells, view))


def _remembered(kept: OrderedDict[tuple[Any, ...], Made], key: tuple[Any, ...], made: Callable[[], Made]) -> Made:
    if key in kept:
        kept.move_to_end(key)
    else:
        kept[key] = made()
        if len(kept) > _MOST_VIEWS:
            kept.popitem(last=False)
    return kept[key]


def _filter_key(view: View) -> tuple[Any, ...]:
    return tuple(view.filters().values())


def _latency_key(view: View) -> tuple[Any, ...]:
    return view.latency, *_filter_key(view)


def _cell(row: tuple[Any, ...]) -> Cell:
    caller, team, model, route, status, error, *sums = row
    # PostgreSQL's sums of BIGINT are NUMERIC; a sum of unknowns is NULL.
    requests, tokens_in, tokens_out, cached = (int(each or 0) for each in sums[:4])
    cost, unpriced, estimated = float(sums[4] or 0), int(sums[5]), int(sums[6])
    return Cell(
        caller, team, model, route, status, error, requests, tokens_in, tokens_out, cached, cost, unpriced, estimated
    )


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)

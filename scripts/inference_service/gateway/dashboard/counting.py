"""The request log counted per bucket of time, in the database.

A bucket that is over does not change any more, but for rows that arrive late out of a journal. So what was counted is
kept for a while, and a page that looks every few seconds costs the database the newest bucket each time, not the day.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar

from inference_service.gateway.dashboard.view import LATENCIES, View
from inference_service.request_log.rows import UNFINISHED
from inference_service.sql import Cursor

BINS_PER_FACTOR = 1.1
_SHORTEST = 0.0001
_BINS = 190  # up to two hours
_BOUNDS = [_SHORTEST * BINS_PER_FACTOR**number for number in range(_BINS)]

_SETTLED_SECONDS = 120
_KEPT_SECONDS = 300
_MOST_KEPT = 4000

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Cell:
    """What the requests of one bucket have in common, and their sums. `cost_usd` is a sum of binary fractions: good for
    looking, while `usage_report.py` adds decimals."""

    caller: str
    team: str | None
    model: str | None
    route: str
    http_status: int | None
    error_type: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: float
    unpriced: int
    estimated: int

    @property
    def failed(self) -> bool:
        """Finished without an answer. A request that is under way has not failed."""
        if self.error_type is not None:
            return self.error_type != UNFINISHED
        return self.http_status is not None and self.http_status >= 400

    @property
    def error(self) -> str:
        """The name under which a failure is counted."""
        return self.error_type or f"http_{self.http_status}"

    def within(self, view: View) -> bool:
        """Whether the view's filters take it."""
        return (
            (view.caller is None or view.caller == self.caller)
            and (view.team is None or view.team == self.team)
            and (view.model is None or view.model == self.model)
            and (view.route is None or view.route == self.route)
            and (
                view.status is None
                or (view.status == "ok" and not self.failed)
                or (view.status == "error" and self.failed)
                or (self.failed and view.status == self.error)
            )
        )


# A served request must have a cost; one that was refused or failed before it used anything cost nothing.
_UNPRICED = "cost_usd IS NULL AND (http_status < 300 OR input_tokens > 0 OR output_tokens > 0)"

# The model of a request that was never routed is whatever its client wrote.
_CELLS = f"""
    SELECT caller, team, CASE WHEN network_arch = '' THEN NULL ELSE model END, route, http_status, error_type,
        COUNT(*), COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0), COALESCE(SUM(cached_tokens), 0),
        COALESCE(SUM(CAST(cost_usd AS DOUBLE PRECISION)), 0), SUM(CASE WHEN {_UNPRICED} THEN 1 ELSE 0 END),
        COUNT(CASE WHEN usage_estimated THEN 1 END)
    FROM requests WHERE time >= :since AND time < :until GROUP BY 1, 2, 3, 4, 5, 6
"""  # noqa: S608


class Counter:
    """Counts one database's requests. Threads may share it; one counts at a time, and the others find it done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], tuple[float, Any]] = OrderedDict()

    def cells(self, cursor: Cursor, view: View, now: float) -> list[list[Cell]]:
        """For each of the view's buckets its cells, without regard to the filters."""

        def count(since: int, until: int) -> list[Cell]:
            rows = cursor.execute(_CELLS, {"since": _moment(since), "until": _moment(until)})
            return [_cell(row) for row in rows]

        return [self._kept_or(("cells",), start, view, now, count) for start in view.buckets]

    def latencies(self, cursor: Cursor, dialect: str, view: View, now: float) -> list[dict[str, dict[int, int]]]:
        """For each of the view's buckets, by route, how many of the requests that the filters take fell into which bin
        of the view's latency (see `seconds_at`)."""
        column = LATENCIES[view.latency]
        chosen, values = _conditions(view)
        # Percentiles in SQL would sort all rows, or do not exist (SQLite). Bins are counted, and added over buckets.
        statement = f"""
            SELECT route, {_bin(column, dialect)}, COUNT(*) FROM requests
            WHERE time >= :since AND time < :until AND {column} IS NOT NULL {chosen} GROUP BY 1, 2
        """  # noqa: S608

        def count(since: int, until: int) -> dict[str, dict[int, int]]:
            by_route: dict[str, dict[int, int]] = {}
            for route, number, requests in cursor.execute(
                statement, {"since": _moment(since), "until": _moment(until), **values}
            ):
                by_route.setdefault(route, {})[int(number)] = int(requests)
            return by_route

        key = ("latencies", column, *view.filters().values())
        return [self._kept_or(key, start, view, now, count) for start in view.buckets]

    def alone(self) -> threading.Lock:
        """To be held while counting."""
        return self._lock

    def _kept_or(
        self, what: tuple[Any, ...], start: int, view: View, now: float, count: Callable[[int, int], Answer]
    ) -> Answer:
        key = (*what, start, view.bucket_seconds)
        kept = self._kept.get(key)
        if kept is not None and kept[0] > time.monotonic():
            self._kept.move_to_end(key)
            answer: Answer = kept[1]
            return answer
        until = start + view.bucket_seconds
        counted = count(start, until)
        if until < now - _SETTLED_SECONDS:
            self._kept[key] = (time.monotonic() + _KEPT_SECONDS, counted)
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return counted


def _cell(row: tuple[Any, ...]) -> Cell:
    # PostgreSQL's sums of BIGINT are NUMERIC.
    requests, tokens_in, tokens_out, cached = map(int, row[6:10])
    return Cell(*row[:6], requests, tokens_in, tokens_out, cached, float(row[10]), int(row[11]), int(row[12]))


def percentile(counted: dict[int, int], percent: int) -> float | None:
    """The latency, in seconds, that `percent` of the requests did not exceed; None of no requests. It is within a bin's
    width, 10 %, of the true one, and its middle is taken."""
    rank = -(-percent * sum(counted.values()) // 100)
    seen = 0
    for number in sorted(counted):
        seen += counted[number]
        if seen >= rank:
            return float(_SHORTEST * BINS_PER_FACTOR ** (number + 0.5))
    return None


def _conditions(view: View) -> tuple[str, dict[str, Any]]:
    """The view's filters as SQL, beginning with AND, and its values; the same as `Cell.within`."""
    failed = "(COALESCE(error_type, '') NOT IN ('', :unfinished) OR (error_type IS NULL AND http_status >= 400))"
    conditions, values = [], {}
    for name in ("caller", "team", "route"):
        if (value := getattr(view, name)) is not None:
            conditions.append(f"{name} = :{name}")
            values[name] = value
    if view.model is not None:
        conditions.append("model = :model AND network_arch <> ''")
        values["model"] = view.model
    if view.status is not None:
        values["unfinished"] = UNFINISHED
        if view.status == "ok":
            conditions.append(f"NOT COALESCE({failed}, FALSE)")
        elif view.status == "error":
            conditions.append(failed)
        else:
            conditions.append(f"{failed} AND COALESCE(error_type, 'http_' || CAST(http_status AS TEXT)) = :status")
            values["status"] = view.status
    return "".join(f" AND {condition}" for condition in conditions), values


def _bin(column: str, dialect: str) -> str:
    """SQL for the number of a latency's bin."""
    if dialect == "postgresql":
        return f"CAST(FLOOR(LN(GREATEST({column}, {_SHORTEST}) / {_SHORTEST}) / LN({BINS_PER_FACTOR})) AS INTEGER)"
    # SQLite need not have logarithms; eight comparisons take no longer than one.
    return _ladder(column, 0, _BINS)


def _ladder(column: str, low: int, high: int) -> str:
    if high - low == 1:
        return str(low)
    middle = (low + high) // 2
    below, above = _ladder(column, low, middle), _ladder(column, middle, high)
    return f"CASE WHEN {column} < {_BOUNDS[middle]!r} THEN {below} ELSE {above} END"


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)

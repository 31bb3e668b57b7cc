"""Percentiles of latencies, from counts of requests per bin.

Percentiles in SQL would sort all rows, or do not exist (SQLite). Bins are counted once, and added over buckets of time
and over routes; each is 10 % wider than the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inference_service.gateway.dashboard.view import LATENCIES, View
from inference_service.request_log.rows import UNFINISHED
from inference_service.sql import Cursor

Bins = dict[str, dict[int, int]]
"""By route: how many requests in which bin."""

_FACTOR = 1.1
_SHORTEST = 0.0001
_COUNT = 190  # up to two hours
_BOUNDS = [_SHORTEST * _FACTOR**number for number in range(_COUNT)]


def count(cursor: Cursor, dialect: str, view: View, span: Mapping[str, Any]) -> Bins:
    """How many of the requests within the span (`since`, `until`) that the view's filters take are in which bin of the
    view's latency."""
    column = LATENCIES[view.latency]
    chosen, values = _conditions(view)
    # Numbers come first: they differ sooner than routes do, and sorting compares them fastest.
    statement = f"""
        SELECT {_bin(column, dialect)}, route, COUNT(*) FROM requests
        WHERE time >= :since AND time < :until AND {column} IS NOT NULL {chosen} GROUP BY 1, 2
    """  # noqa: S608
    by_route: Bins = {}
    for number, route, requests in cursor.execute(statement, {**span, **values}):
        by_route.setdefault(route, {})[number] = requests
    return by_route


def together(bins: Iterable[dict[int, int]]) -> dict[int, int]:
    """The sum of several counts."""
    total: dict[int, int] = {}
    for counted in bins:
        for number, requests in counted.items():
            total[number] = total.get(number, 0) + requests
    return total


def percentile(counted: Mapping[int, int], percent: int) -> float | None:
    """The latency, in seconds, that `percent` of the requests did not exceed, None of no requests: the middle of the
    bin that holds it, which is within 5 % of it."""
    rank = -(-percent * sum(counted.values()) // 100)
    seen = 0
    for number in sorted(counted):
        seen += counted[number]
        if seen >= rank:
            return float(_SHORTEST * _FACTOR ** (number + 0.5))
    return None


def _conditions(view: View) -> tuple[str, dict[str, Any]]:
    """The view's filters as SQL, beginning with AND, and its values: what `Cell.within` says."""
    conditions: list[str] = []
    values: dict[str, Any] = {}
    for name in ("caller", "team", "route"):
        if (value := getattr(view, name)) is not None:
            conditions.append(f"{name} = :{name}")
            values[name] = value
    if view.model is not None:
        conditions.append("model = :model AND network_arch <> ''")
        values["model"] = view.model
    # The name of the failure, NULL where there is none: Cell.failure.
    failure = (
        "CASE WHEN error_type IS NOT NULL THEN NULLIF(error_type, :unfinished)"
        " WHEN http_status >= 400 THEN 'http_' || CAST(http_status AS TEXT) END"
    )
    if view.status is not None:
        values["unfinished"] = UNFINISHED
        if view.status == "ok":
            conditions.append(f"({failure}) IS NULL")
        elif view.status == "error":
            conditions.append(f"({failure}) IS NOT NULL")
        else:
            conditions.append(f"({failure}) = :status")
            values["status"] = view.status
    return "".join(f" AND {condition}" for condition in conditions), values


def _bin(column: str, dialect: str) -> str:
    """SQL for the number of a latency's bin."""
    if dialect == "postgresql":
        beyond = f"LN(GREATEST({column}, {_SHORTEST}) / {_SHORTEST}) / LN({_FACTOR})"
        return f"LEAST(CAST(FLOOR({beyond}) AS INTEGER), {_COUNT - 1})"
    # SQLite need not have logarithms; eight comparisons take no longer than one.
    return _ladder(column, 0, _COUNT)


def _ladder(column: str, low: int, high: int) -> str:
    if high - low == 1:
        return str(low)
    middle = (low + high) // 2
    below, above = _ladder(column, low, middle), _ladder(column, middle, high)
    return f"CASE WHEN {column} < {_BOUNDS[middle]!r} THEN {below} ELSE {above} END"

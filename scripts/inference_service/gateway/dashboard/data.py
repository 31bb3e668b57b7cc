"""The dashboard's document: everything the page shows of one view, as JSON."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from inference_service.gateway.dashboard import budgets, counting, view
from inference_service.gateway.dashboard.counting import Cell
from inference_service.gateway.dashboard.view import View
from inference_service.sql import Database

# More lines than this in one chart cannot be told apart.
_MOST_SERIES = 6
_MOST_ROWS = 50
_MOST_CHOICES = 200
_PERCENTS = (50, 95, 99)

_counters: dict[str, counting.Counter] = {}


def document(
    database: Database, query: Mapping[str, str], live: Sequence[Mapping[str, Any]], now: float
) -> dict[str, Any]:
    """What the page shows. Times are seconds since 1970 UTC, latencies seconds, money USD. Does I/O: for a thread.

    Args:
        query: of the page's address, see `view.of_query`.
        live: the requests under way, each with `request_id`, `time` (when it arrived) and, as far as they are known,
            `caller`, `team`, `model`, `route`, `stream` and `state`.

    Raises:
        BadInput: the query asks for what there is not.
        DatabaseUnusable: the request log cannot be read.
    """
    asked = view.of_query(query, now)
    counter = _counters.setdefault(database.shown, counting.Counter())
    with counter.alone(), database.snapshot() as cursor:
        all_cells = counter.cells(cursor, asked, now)
        binned = counter.latencies(cursor, database.dialect, asked, now)
        left = budgets.budgets(cursor, now)
    buckets = [[cell for cell in cells if cell.within(asked)] for cells in all_cells]
    cells = [cell for bucket in buckets for cell in bucket]
    return {
        "now": now,
        "since": asked.since,
        "until": asked.until,
        "bucket_seconds": asked.bucket_seconds,
        "latency": asked.latency,
        "filters": asked.filters(),
        "choices": _choices([cell for bucket in all_cells for cell in bucket]),
        "totals": {**_sums(cells), **_percentiles(binned)},
        "series": _series(buckets, binned),
        "callers": _table(cells, lambda cell: {"caller": cell.caller, "team": cell.team}),
        "models": _table(cells, lambda cell: {"model": cell.model}),
        "routes": _routes(cells, binned),
        "errors": _errors(cells),
        "unpriced": [row for row in _table(cells, lambda cell: {"model": cell.model}) if row["unpriced"]],
        "budgets": [budget for budget in left if _takes(asked, budget)],
        "live": [dict(request) for request in live if _takes(asked, request)],
    }


def _choices(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """What the filters can be set to: what there is in the range, the most frequent first where there is too much."""
    counted: dict[str, Tally[str]] = {name: Tally() for name in view.FILTERS}
    for cell in cells:
        for name in ("caller", "team", "model", "route"):
            if value := getattr(cell, name):
                counted[name][value] += cell.requests
        if cell.failed:
            counted["status"][cell.error] += cell.requests
    return {name: sorted(value for value, _ in tally.most_common(_MOST_CHOICES)) for name, tally in counted.items()}


def _sums(cells: Iterable[Cell]) -> dict[str, Any]:
    totals = dict.fromkeys(
        ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "unpriced", "estimated"), 0
    )
    cost = 0.0
    for cell in cells:
        totals["requests"] += cell.requests
        totals["errors"] += cell.requests if cell.failed else 0
        totals["input_tokens"] += cell.input_tokens
        totals["output_tokens"] += cell.output_tokens
        totals["cached_tokens"] += cell.cached_tokens
        totals["unpriced"] += cell.unpriced
        totals["estimated"] += cell.estimated
        cost += cell.cost_usd
    return {**totals, "cost_usd": cost}


def _table(cells: Iterable[Cell], key: Callable[[Cell], dict[str, Any]]) -> list[dict[str, Any]]:
    """The sums of the cells with equal keys, what cost most first, and then what was asked most."""
    groups: dict[tuple[Any, ...], tuple[dict[str, Any], list[Cell]]] = {}
    for cell in cells:
        fields = key(cell)
        groups.setdefault(tuple(fields.values()), (fields, []))[1].append(cell)
    rows = [{**fields, **_sums(members)} for fields, members in groups.values()]
    return sorted(rows, key=lambda row: (-row["cost_usd"], -row["requests"]))[:_MOST_ROWS]


def _series(buckets: Sequence[Sequence[Cell]], binned: Sequence[dict[str, dict[int, int]]]) -> dict[str, Any]:
    merged = [_merged(bucket.values()) for bucket in binned]
    return {
        "requests": [sum(cell.requests for cell in bucket) for bucket in buckets],
        "unpriced": [sum(cell.unpriced for cell in bucket) for bucket in buckets],
        "spend": _stacked(buckets, lambda cell: cell.caller, lambda cell: cell.cost_usd),
        "tokens": _stacked(buckets, lambda cell: cell.caller, lambda cell: cell.input_tokens + cell.output_tokens),
        "errors": _stacked(
            buckets, lambda cell: cell.error if cell.failed else None, lambda cell: cell.requests if cell.failed else 0
        ),
        "latency": [
            {"name": f"p{percent}", "values": [counting.percentile(counted, percent) for counted in merged]}
            for percent in _PERCENTS
        ],
    }


def _stacked(
    buckets: Sequence[Sequence[Cell]], name: Callable[[Cell], str | None], amount: Callable[[Cell], float]
) -> list[dict[str, Any]]:
    """A value per bucket for each name, the largest names first, the small ones together as others."""
    totals: dict[str, float] = {}
    for cell in (cell for bucket in buckets for cell in bucket):
        if (key := name(cell)) is not None:
            totals[key] = totals.get(key, 0) + amount(cell)
    ranked = sorted((key for key, total in totals.items() if total), key=lambda key: (-totals[key], key))
    shown = ranked if len(ranked) <= _MOST_SERIES else ranked[: _MOST_SERIES - 1]
    values: dict[str | None, list[float]] = {key: [0] * len(buckets) for key in shown}
    rest: list[float] = [0] * len(buckets)
    for position, bucket in enumerate(buckets):
        for cell in bucket:
            key = name(cell)
            if key is not None:
                values.get(key, rest)[position] += amount(cell)
    series: list[dict[str, Any]] = [{"name": key, "values": values[key]} for key in shown]
    if len(shown) < len(ranked):
        # No name of its own: a caller may be named like whatever word is put here.
        series.append({"name": None, "count": len(ranked) - len(shown), "values": rest})
    return series


def _percentiles(binned: Iterable[dict[str, dict[int, int]]]) -> dict[str, Any]:
    counted = _merged(by_route for bucket in binned for by_route in bucket.values())
    return {f"p{percent}": counting.percentile(counted, percent) for percent in _PERCENTS}


def _routes(cells: Sequence[Cell], binned: Sequence[dict[str, dict[int, int]]]) -> list[dict[str, Any]]:
    return [
        {**row, **_percentiles([{"": _merged(bucket.get(row["route"], {}) for bucket in binned)}])}
        for row in sorted(_table(cells, lambda cell: {"route": cell.route}), key=lambda row: -row["requests"])
    ]


def _errors(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    counted: Tally[tuple[str, int | None]] = Tally()
    for cell in cells:
        if cell.failed:
            counted[cell.error, cell.http_status] += cell.requests
    every = sum(cell.requests for cell in cells)
    return [
        {"error": error, "http_status": status, "requests": requests, "share": requests / every}
        for (error, status), requests in counted.most_common(_MOST_ROWS)
    ]


def _merged(counts: Iterable[dict[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for counted in counts:
        for number, requests in counted.items():
            total[number] = total.get(number, 0) + requests
    return total


def _takes(asked: View, what: Mapping[str, Any]) -> bool:
    """Whether the filters take something that has not all of the fields; one that it lacks does not count."""
    return all(
        wanted is None or name not in what or what[name] == wanted
        for name, wanted in asked.filters().items()
        if name != "status"
    )

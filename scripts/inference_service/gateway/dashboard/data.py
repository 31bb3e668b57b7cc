"""The dashboard's document: everything the page shows of one view, as JSON."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from inference_service.gateway.dashboard import budgets, latencies, view
from inference_service.gateway.dashboard.counting import Counter, Counts
from inference_service.gateway.dashboard.latencies import Bins
from inference_service.gateway.dashboard.summing import Bucket, Sums
from inference_service.gateway.dashboard.view import View
from inference_service.sql import Database

# More lines than this in one chart cannot be told apart.
_MOST_SERIES = 6
_MOST_ROWS = 50
_MOST_CHOICES = 200
_PERCENTS = (50, 95, 99)

_counters: dict[str, Counter] = {}


def document(
    database: Database, query: Mapping[str, str], live: Sequence[Mapping[str, Any]], now: float
) -> dict[str, Any]:
    """What the page shows. Times are seconds since 1970 UTC, latencies seconds, money USD. Does I/O: for a thread.

    Args:
        query: of the page's address, see `view.of_query`.
        live: the requests under way, each with `request_id`, `seconds` since it arrived and, as far as they are known,
            `caller`, `team`, `model`, `route`, `stream` and `response_bytes`.

    Raises:
        BadInput: the query asks for what there is not.
        DatabaseUnusable: the request log cannot be read.
    """
    asked = view.of_query(query, now)
    counts = _counters.setdefault(database.shown, Counter(database)).count(asked, now)
    with database.snapshot() as cursor:
        left = budgets.budgets(cursor, now)
    whole = Bucket.together(counts.buckets)
    return {
        "now": now,
        "since": asked.since,
        "until": asked.until,
        "bucket_seconds": asked.bucket_seconds,
        "latency": asked.latency,
        "filters": asked.filters(),
        "choices": _choices(Bucket.together(counts.unfiltered)),
        "totals": {**whole.total.document(), **_percentiles(bins for each in counts.bins for bins in each.values())},
        "series": _series(counts, whole),
        "callers": _rows(whole.callers, lambda key: {"caller": key[0], "team": key[1]}),
        "models": _rows(whole.models, lambda model: {"model": model}),
        "routes": _routes(whole, counts.bins),
        "errors": _errors(whole),
        "unpriced": [row for row in _rows(whole.models, lambda model: {"model": model}) if row["unpriced"]],
        "budgets": [budget for budget in left if _takes(asked, budget)],
        "live": [dict(request) for request in live if _takes(asked, request)],
    }


def _choices(whole: Bucket) -> dict[str, list[str]]:
    """What the filters can be set to: what there is in the range, the most frequent where there is too much."""
    counted: dict[str, Tally[str]] = {name: Tally() for name in view.FILTERS}
    for (caller, team), sums in whole.callers.items():
        counted["caller"][caller] += sums.requests
        counted["team"][team or ""] += sums.requests
    for model, sums in whole.models.items():
        counted["model"][model or ""] += sums.requests
    for route, sums in whole.routes.items():
        counted["route"][route] += sums.requests
    for (failure, _), requests in whole.failures.items():
        counted["status"][failure] += requests
    return {
        name: sorted(value for value, _ in tally.most_common(_MOST_CHOICES) if value) for name, tally in counted.items()
    }


def _rows(sums: Mapping[Any, Sums], fields: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each key, what cost most first, and then what was asked most."""
    ranked = sorted(sums.items(), key=lambda item: (-item[1].cost_usd, -item[1].requests))
    return [{**fields(key), **each.document()} for key, each in ranked[:_MOST_ROWS]]


def _routes(whole: Bucket, bins: Sequence[Bins]) -> list[dict[str, Any]]:
    rows = _rows(whole.routes, lambda route: {"route": route})
    rows.sort(key=lambda row: -row["requests"])
    return [{**row, **_percentiles(each.get(row["route"], {}) for each in bins)} for row in rows]


def _errors(whole: Bucket) -> list[dict[str, Any]]:
    ranked = sorted(whole.failures.items(), key=lambda item: (-item[1], item[0][0]))
    return [
        {"error": failure, "http_status": status, "requests": requests, "share": requests / whole.total.requests}
        for (failure, status), requests in ranked[:_MOST_ROWS]
    ]


def _series(counts: Counts, whole: Bucket) -> dict[str, Any]:
    buckets = counts.buckets
    merged = [latencies.together(bins.values()) for bins in counts.bins]
    return {
        "requests": [bucket.total.requests for bucket in buckets],
        "unpriced": [bucket.total.unpriced for bucket in buckets],
        "spend": _by_caller(buckets, whole, lambda sums: sums.cost_usd),
        "tokens": _by_caller(buckets, whole, lambda sums: sums.input_tokens + sums.output_tokens),
        "errors": _stacked(
            [_tally((name, requests) for (name, _), requests in bucket.failures.items()) for bucket in buckets],
            _tally((name, requests) for (name, _), requests in whole.failures.items()),
        ),
        "latency": [
            {"name": f"p{percent}", "values": [latencies.percentile(bins, percent) for bins in merged]}
            for percent in _PERCENTS
        ],
    }


def _by_caller(buckets: Sequence[Bucket], whole: Bucket, amount: Callable[[Sums], float]) -> list[dict[str, Any]]:
    def by_name(bucket: Bucket) -> dict[str, float]:
        return _tally((caller, amount(sums)) for (caller, _), sums in bucket.callers.items())

    return _stacked([by_name(bucket) for bucket in buckets], by_name(whole))


def _tally(amounts: Iterable[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, amount in amounts:
        total[name] = total.get(name, 0) + amount
    return total


def _stacked(per_bucket: Sequence[Mapping[str, float]], totals: Mapping[str, float]) -> list[dict[str, Any]]:
    """A value per bucket for each name, the largest names first, the small ones together."""
    ranked = sorted((name for name, total in totals.items() if total), key=lambda name: (-totals[name], name))
    shown = ranked if len(ranked) <= _MOST_SERIES else ranked[: _MOST_SERIES - 1]
    series: list[dict[str, Any]] = [
        {"name": name, "values": [bucket.get(name, 0) for bucket in per_bucket]} for name in shown
    ]
    if rest := ranked[len(shown) :]:
        # Without a name of its own: a caller may be named like whatever word is put here.
        values = [sum(bucket.get(name, 0) for name in rest) for bucket in per_bucket]
        series.append({"name": None, "count": len(rest), "values": values})
    return series


def _percentiles(bins: Iterable[dict[int, int]]) -> dict[str, float | None]:
    counted = latencies.together(bins)
    return {f"p{percent}": latencies.percentile(counted, percent) for percent in _PERCENTS}


def _takes(asked: View, what: Mapping[str, Any]) -> bool:
    """Whether the filters take something that has not all of their fields; one that it lacks does not count."""
    return all(
        wanted is None or name not in what or what[name] == wanted
        for name, wanted in asked.filters().items()
        if name != "status"
    )

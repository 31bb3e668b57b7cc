"""The gateway's figures: counted per finished request in about a microsecond, exposed to Prometheus.

Counters and histograms are plain lists behind one dictionary look-up. `prometheus_client` would look each metric's
child up by its labels and lock it, a dozen times per request, which costs more than all of ours; so only the format is
theirs.

How many series there are is bounded: what comes beyond is counted under the label `other`. What a client wrote becomes
a label only when it named something that exists: the model of a request that was routed, a path that is served.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from inference_service.gateway import metrics_text
from inference_service.gateway.metrics_snapshot import (
    ANSWER_BUCKETS,
    FORMAT,
    LATENCIES,
    USAGE,
    WORK_BUCKETS,
    Gauges,
    Snapshot,
    merge,
)
from inference_service.request_log.rows import RequestRow

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
ROUTES = ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/usage")

_LONGEST_LABEL = 120


class _Series:
    """One combination of labels: how many requests, and where its tokens, cost and latencies are counted."""

    __slots__ = ("latencies", "requests", "usage")

    def __init__(self, usage: _Usage, latencies: list[list[Any]]) -> None:
        self.requests = 0
        self.usage = usage
        self.latencies = latencies


class _Usage:
    __slots__ = ("cost", "counts")

    def __init__(self) -> None:
        self.counts = [0] * len(USAGE)
        self.cost = Decimal(0)


class Metrics:
    """The figures of one process. Not thread-safe: `observe` and `snapshot` belong to the event loop's thread.

    Args:
        most_series: how many combinations of labels are told apart, for requests; a quarter of it for the latencies,
            which are a hundred lines of text each.
        routes: the paths that are served; a request for another one is counted as `other`.
    """

    def __init__(self, most_series: int = 2000, routes: Collection[str] = ROUTES) -> None:
        self._routes = frozenset(routes)
        self._most = most_series
        # By what a row says, so that a request costs one look-up; bounded in _series.
        self._known: dict[tuple[Any, ...], _Series] = {}
        self._requests: dict[tuple[str, str, str, str, str], _Series] = {}
        self._usage: dict[tuple[str, str, str], _Usage] = {}
        self._latencies: dict[tuple[str, str], list[list[Any]]] = {}

    def observe(self, row: RequestRow) -> None:
        """Count a finished request."""
        key = (row.route, row.caller, row.model, row.http_status, row.error_type, row.network_arch)
        series = self._known.get(key) or self._series(row, key)
        series.requests += 1

        queue, connect, overhead, first_byte, first_token, total = series.latencies
        # A list of counts per bucket, the last one beyond all bounds, and then the sum.
        if (seconds := row.queue_seconds) is not None:
            queue[bisect_left(WORK_BUCKETS, seconds)] += 1
            queue[-1] += seconds
        if (seconds := row.connect_seconds) is not None:
            connect[bisect_left(WORK_BUCKETS, seconds)] += 1
            connect[-1] += seconds
        if (seconds := row.overhead_seconds) is not None:
            overhead[bisect_left(WORK_BUCKETS, seconds)] += 1
            overhead[-1] += seconds
        if (seconds := row.first_byte_seconds) is not None:
            first_byte[bisect_left(ANSWER_BUCKETS, seconds)] += 1
            first_byte[-1] += seconds
        if (seconds := row.first_token_seconds) is not None:
            first_token[bisect_left(ANSWER_BUCKETS, seconds)] += 1
            first_token[-1] += seconds
        if (seconds := row.total_seconds) is not None:
            total[bisect_left(ANSWER_BUCKETS, seconds)] += 1
            total[-1] += seconds

        usage = series.usage
        counts = usage.counts
        metered = False
        if tokens := row.input_tokens:
            counts[0] += tokens
            metered = True
        if tokens := row.output_tokens:
            counts[1] += tokens
            metered = True
        if tokens := row.cached_tokens:
            counts[2] += tokens
        if tokens := row.cache_write_5m_tokens:
            counts[3] += tokens
        if tokens := row.cache_write_1h_tokens:
            counts[4] += tokens
        if row.usage_estimated:
            counts[5] += 1
        if row.cost_usd is not None:
            usage.cost += row.cost_usd
        # What was refused before it went anywhere has no cost because it cost nothing; what was served must have one.
        elif metered or ((status := row.http_status) is not None and status < 300):
            counts[6] += 1
        if row.retries:
            counts[7] += row.retries

    def snapshot(self, gauges: Gauges | None = None, at: float | None = None) -> Snapshot:
        """All counts of this process, to be dumped before the next request is observed: it shares their lists.

        `at`: when, in seconds since 1970; `merge` leaves out the gauges of a process that has not written for long.
        """
        return {
            "format": FORMAT,
            "at": at,
            "requests": [[*labels, series.requests] for labels, series in self._requests.items()],
            "usage": [[*labels, usage.counts, format(usage.cost, "f")] for labels, usage in self._usage.items()],
            "latencies": [[*labels, series] for labels, series in self._latencies.items()],
            "gauges": asdict(gauges) if gauges else None,
        }

    def exposition(
        self, gauges: Gauges | None = None, others: Iterable[Snapshot] = (), at: float | None = None
    ) -> bytes:
        """The text that Prometheus scrapes: this process and the snapshots of the others (`SnapshotFiles.others`)."""
        return rendered(self.snapshot(gauges, at), others, at)

    def _series(self, row: RequestRow, key: tuple[Any, ...]) -> _Series:
        """The series of a row that was not seen like this before."""
        # A request that was never routed may carry any text as its model, another on each request.
        model = _label(row.model) if row.network_arch else ""
        route = _label(row.route) if row.network_arch or row.route in self._routes else OTHER
        status = "none" if row.http_status is None else str(row.http_status)
        labels = (route, _label(row.caller), model, status, _label(row.error_type))
        series = self._requests.get(labels)
        if series is None:
            if len(self._requests) >= self._most:
                labels = (OTHER, OTHER, OTHER, status[:1] + "xx", OTHER)
            series = self._requests.get(labels)
            if series is None:
                series = _Series(self._usage_of(labels[:3]), self._latencies_of(labels[:2]))
                self._requests[labels] = series
        if len(self._known) < 2 * self._most:
            self._known[key] = series
        return series

    def _usage_of(self, labels: tuple[str, str, str]) -> _Usage:
        return self._usage.setdefault(labels, _Usage())

    def _latencies_of(self, labels: tuple[str, str]) -> list[list[Any]]:
        if labels not in self._latencies and len(self._latencies) >= self._most // 4:
            labels = (OTHER, OTHER)
        if labels not in self._latencies:
            self._latencies[labels] = [[0] * (len(bounds) + 1) + [0.0] for _, bounds, _ in LATENCIES]
        return self._latencies[labels]


def rendered(snapshot: Snapshot, others: Iterable[Snapshot] = (), at: float | None = None) -> bytes:
    """A snapshot just taken and the others' as the text that Prometheus scrapes. With a hundred callers that is
    megabytes and takes tens of milliseconds; it may be done in a thread while more is counted."""
    return metrics_text.text(merge([snapshot, *others], now=at))


def _label(value: str | None) -> str:
    """A label's value: cut to length, without characters that are not for showing."""
    if not value:
        return ""
    shown = value[:_LONGEST_LABEL].encode(errors="replace").decode()
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)

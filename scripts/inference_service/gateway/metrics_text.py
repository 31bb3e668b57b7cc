"""Counted figures as the text that Prometheus scrapes, in its format 0.0.4."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from inference_service.gateway.metrics_snapshot import BREAKER_STATES, LATENCIES, USAGE, Merged

LIMITS = frozenset({"rate_limited_requests", "rate_limited_tokens", "budget_day", "budget_month"})
"""The error types of requests that a caller's own limit refused."""


def text(merged: Merged) -> bytes:
    """What `merge` made, in Prometheus' text format 0.0.4."""
    lines = _Lines()
    lines.family("requests_total", "counter", "Requests that reached the gateway, whatever became of them.")
    refusals: dict[tuple[str, str], int] = {}
    for (route, caller, model, status, error_type), count in merged.requests.items():
        labels = {"route": route, "caller": caller, "model": model, "status": status, "error_type": error_type}
        lines.sample("requests_total", labels, count)
        if error_type in LIMITS:
            refusals[caller, error_type] = refusals.get((caller, error_type), 0) + count
    lines.family("limit_refusals_total", "counter", "Requests that a caller's own limit or budget refused.")
    for (caller, limit), count in refusals.items():
        lines.sample("limit_refusals_total", {"caller": caller, "limit": limit}, count)
    _put_usage(lines, merged.usage)
    for position, (name, bounds, told) in enumerate(LATENCIES):
        lines.family(name, "histogram", told)
        for (route, caller), series in merged.latencies.items():
            lines.histogram(name, {"route": route, "caller": caller}, bounds, series[position])
    _put_gauges(lines, merged)
    return lines.encoded()


def _put_usage(lines: _Lines, usage: Mapping[tuple[str, ...], tuple[list[int], Decimal]]) -> None:
    labelled = [
        ({"route": route, "caller": caller, "model": model}, dict(zip(USAGE, counts, strict=True)), cost)
        for (route, caller, model), (counts, cost) in usage.items()
    ]
    lines.family("tokens_total", "counter", "Tokens by kind; the kinds do not overlap, input is what no cache held.")
    for labels, counts, _ in labelled:
        cached = {kind: counts[kind] for kind in ("cache_read", "cache_write_5m", "cache_write_1h")}
        kinds = {"input": max(counts["input"] - sum(cached.values()), 0), "output": counts["output"], **cached}
        for kind, count in kinds.items():
            if count:
                lines.sample("tokens_total", {**labels, "kind": kind}, count)
    lines.family("cost_usd_total", "counter", "What priced requests cost, in US dollars.")
    for labels, _, cost in labelled:
        lines.sample("cost_usd_total", labels, cost)
    for name, kind, told in (
        (
            "unpriced_requests_total",
            "unpriced",
            "Served requests without a price: they are in no sum of costs.",
        ),
        ("estimated_usage_requests_total", "estimated", "Requests whose tokens nobody reported and we worked out."),
        ("upstream_retries_total", "retries", "Attempts at an upstream after the first one."),
    ):
        lines.family(name, "counter", told)
        for labels, counts, _ in labelled:
            lines.sample(name, labels, counts[kind])


def _put_gauges(lines: _Lines, merged: Merged) -> None:
    lines.family("requests_in_flight", "gauge", "Requests that are being answered now.")
    for route, count in merged.in_flight.items():
        lines.sample("requests_in_flight", {"route": route}, count)
    lines.family("queue_length", "gauge", "Requests that wait for a free place of an upstream.")
    for upstream, count in merged.queued.items():
        lines.sample("queue_length", {"upstream": upstream}, count)
    lines.family("circuit_breaker_workers", "gauge", "Worker processes whose breaker of an upstream is in this state.")
    for upstream in sorted({upstream for upstream, _ in merged.breakers}):
        for state in BREAKER_STATES:
            labels = {"upstream": upstream, "state": state}
            lines.sample("circuit_breaker_workers", labels, merged.breakers.get((upstream, state), 0))
    for name, value, told in (
        ("journal_rows", merged.journal_rows, "Rows that are in the journal and not in the database yet."),
        ("journal_bytes", merged.journal_bytes, "Size of the journal's files, in bytes."),
        ("workers", merged.workers, "Worker processes of this gateway."),
    ):
        lines.family(name, "gauge", told)
        lines.sample(name, {}, value)


class _Lines:
    """The text under construction."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, told: str) -> None:
        self._lines.append(f"# HELP tao_gateway_{name} {told}\n# TYPE tao_gateway_{name} {kind}")

    def sample(self, name: str, labels: Mapping[str, str], value: int | float | Decimal) -> None:
        number = format(value, "f") if isinstance(value, Decimal) else repr(value)
        self._lines.append(f"tao_gateway_{name}{_braced(labels)} {number}")

    def histogram(self, name: str, labels: Mapping[str, str], bounds: tuple[float, ...], counted: list[Any]) -> None:
        """Nothing was measured: no lines, for a scrape of many callers is long enough."""
        *counts, total = counted
        below = list(itertools.accumulate(counts))
        if not below[-1]:
            return
        common = _braced(labels)[:-1]
        begun = f"tao_gateway_{name}_bucket{common}"
        ends = _bucket_ends(bounds)
        self._lines += [f"{begun}{end}{count}" for end, count in zip(ends, below, strict=True)]
        self._lines.append(f"tao_gateway_{name}_sum{common}}} {total!r}")
        self._lines.append(f"tao_gateway_{name}_count{common}}} {below[-1]}")

    def encoded(self) -> bytes:
        """All of it."""
        return ("\n".join(self._lines) + "\n").encode()


@functools.cache
def _bucket_ends(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f',le="{bound}"}} ' for bound in (*map(str, bounds), "+Inf"))


def _braced(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

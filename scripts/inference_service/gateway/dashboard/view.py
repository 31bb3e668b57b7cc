"""What a dashboard's address asks for: a span of time cut into buckets, and filters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from inference_service.errors import BadInput

RANGES = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000, "90d": 7_776_000}
DEFAULT_RANGE = "24h"
MOST_BUCKETS = 120

# Every size divides the next larger ones' days, so that a bucket always begins at the same places of a day in UTC.
_BUCKET_SECONDS = (10, 30, 60, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800)
_LONGEST = 400 * 86_400
LATENCIES = {
    "total": "total_seconds",
    "first_token": "first_token_seconds",
    "first_byte": "first_byte_seconds",
    "queue": "queue_seconds",
    "connect": "connect_seconds",
    "overhead": "overhead_seconds",
}
"""The latencies that can be looked at, and the request log's column of each."""
FILTERS = ("caller", "team", "model", "route", "status")


@dataclass(frozen=True)
class View:
    """`since` and `until` are whole multiples of `bucket_seconds`, in seconds since 1970 UTC. A filter of None takes
    everything; `status` is `ok`, `error`, or one error type."""

    since: int
    until: int
    bucket_seconds: int
    latency: str = "total"
    caller: str | None = None
    team: str | None = None
    model: str | None = None
    route: str | None = None
    status: str | None = None

    @property
    def buckets(self) -> range:
        """When each bucket begins."""
        return range(self.since, self.until, self.bucket_seconds)

    def filters(self) -> dict[str, str | None]:
        """The filters by name."""
        return {name: getattr(self, name) for name in FILTERS}


def of_query(query: Mapping[str, str], now: float) -> View:
    """The view that a query string means: `range` (see RANGES) before `now`, or `since` and `until` in ISO 8601;
    `latency` and the filters.

    Raises:
        BadInput: a value is none of those that there are.
    """
    begun, ended = _span(query, now)
    seconds = next((size for size in _BUCKET_SECONDS if (ended - begun) / size <= MOST_BUCKETS), _BUCKET_SECONDS[-1])
    latency = query.get("latency") or "total"
    if latency not in LATENCIES:
        raise BadInput("invalid_latency", f"there is no latency {latency!r}", f"choose among {', '.join(LATENCIES)}")
    return View(
        since=math.floor(begun / seconds) * seconds,
        until=math.ceil(ended / seconds) * seconds,
        bucket_seconds=seconds,
        latency=latency,
        **{name: query.get(name) or None for name in FILTERS},
    )


def _span(query: Mapping[str, str], now: float) -> tuple[float, float]:
    if query.get("since"):
        begun = _moment("since", query["since"])
        ended = min(_moment("until", query["until"]), now) if query.get("until") else now
        if begun >= ended:
            raise BadInput("invalid_range", "the range ends before it begins", "choose an earlier beginning")
        if ended - begun > _LONGEST:
            raise BadInput("invalid_range", "the range is longer than 400 days", "choose a later beginning")
        return begun, ended
    name = query.get("range") or DEFAULT_RANGE
    if name not in RANGES:
        raise BadInput("invalid_range", f"there is no range {name!r}", f"choose among {', '.join(RANGES)}")
    return now - RANGES[name], now


def _moment(name: str, text: str) -> float:
    try:
        # Python 3.10's fromisoformat does not know the suffix Z, nor fractions of another length than its own.
        moment = datetime.fromisoformat(re.sub(r"(\.[0-9]+)?[zZ]$", "+00:00", text))
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
    if seconds < 0:
        raise BadInput("invalid_range", f"{name} is no time: {text!r}", "give ISO 8601, e.g. 2026-01-31T09:00Z")
    return seconds

"""One request's row in two halves: what is known before it is sent, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

UNFINISHED = "unfinished"
"""The error_type of a row whose request is still under way, or whose process died before the answer came."""


@dataclass(frozen=True)
class LoggedRequest:
    """A request that is about to be sent.

    `time` carries its time zone. `job_id`, `network_arch`, `model` and `platform` say which service it goes to; `route`
    is the path of the URL. `request_id` is unique among all requests.
    """

    request_id: str
    time: datetime
    caller: str
    job_id: str | None
    network_arch: str
    model: str | None
    platform: str | None
    route: str


@dataclass(frozen=True)
class Outcome:
    """What became of a request. None means unknown, never zero.

    Latencies are seconds from the moment the request was taken in hand: `queue_seconds` until it was sent,
    `first_byte_seconds` until the answer began, `total_seconds` until its end. `cost_usd` stays None until `priced_by`
    can say how it was priced.
    """

    total_seconds: float
    http_status: int | None = None
    error_type: str | None = None
    queue_seconds: float | None = None
    first_byte_seconds: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: Decimal | None = None
    priced_by: str | None = None

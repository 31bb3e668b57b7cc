"""One request's row: in two halves for who sends one request, whole for the gateway, which writes it at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass
class RequestRow:
    """One request that reached the gateway, whatever became of it: answered, refused, aborted, timed out or cut.

    `time` is when its first byte arrived, in seconds since 1970 UTC; every latency is in seconds from that moment, but
    for `connect_seconds` (connecting to the upstream, 0 on a kept connection) and `overhead_seconds` (our own work: the
    total without the waiting for a slot, for the upstream and for a slow client). Bytes are those of the bodies. None
    means unknown, never zero.
    """

    request_id: str
    time: float
    route: str
    caller: str = ""
    caller_id: str | None = None
    team: str | None = None
    project: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    job_id: str | None = None
    network_arch: str = ""
    model: str | None = None
    platform: str | None = None
    stream: bool = False
    http_status: int | None = None
    error_type: str | None = None
    queue_seconds: float | None = None
    connect_seconds: float | None = None
    first_byte_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float | None = None
    overhead_seconds: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    usage_estimated: bool = False
    cost_usd: Decimal | None = None
    priced_by: str | None = None
    upstream_request_id: str | None = None
    retries: int = 0
    request_bytes: int | None = None
    response_bytes: int | None = None
    gateway: str = ""

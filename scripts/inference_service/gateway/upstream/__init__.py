"""The gateway's own client: pooled HTTP/1.1 towards one upstream, its guard, and when to try again."""

from inference_service.gateway.upstream.errors import (
    BadAnswer,
    Closed,
    ConnectFailed,
    PoolBusy,
    Reset,
    TimedOut,
    UpstreamError,
)
from inference_service.gateway.upstream.origin import OWN_HEADERS, HeaderBlock, Origin, header_block, parse_base
from inference_service.gateway.upstream.pool import Pool
from inference_service.gateway.upstream.response import Response

__all__ = [
    "OWN_HEADERS",
    "BadAnswer",
    "Closed",
    "ConnectFailed",
    "HeaderBlock",
    "Origin",
    "Pool",
    "PoolBusy",
    "Reset",
    "Response",
    "TimedOut",
    "UpstreamError",
    "header_block",
    "parse_base",
]

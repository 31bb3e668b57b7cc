"""The limits there are, each a quantity within a window of time: minutes, days and months of UTC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from inference_service.callers.caller import Limits

_MINUTE = 60
_DAY = 86_400


@dataclass(frozen=True)
class Quantity:
    """One limit. `name` is its name everywhere (option, output, message), `window` the word for its time span, and
    `error_type` what a request refused for it is logged as."""

    name: str
    window: str
    is_money: bool
    error_type: str
    limit_of: Callable[[Limits], int | None]


REQUESTS = Quantity(
    "requests_per_minute", "minute", False, "rate_limited_requests", lambda limits: limits.requests_per_minute
)
TOKENS = Quantity("tokens_per_minute", "minute", False, "rate_limited_tokens", lambda limits: limits.tokens_per_minute)
DAY = Quantity("usd_per_day", "day", True, "budget_day", lambda limits: limits.nano_usd_per_day)
MONTH = Quantity("usd_per_month", "month", True, "budget_month", lambda limits: limits.nano_usd_per_month)

QUANTITIES = (REQUESTS, TOKENS, DAY, MONTH)
BUDGETS = (DAY, MONTH)
BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}


def start_of(window: str, at: float) -> int:
    """When the minute, day or month began that holds the moment `at`, both in seconds since 1970 UTC."""
    if window == "minute":
        return int(at // _MINUTE) * _MINUTE
    if window == "day":
        return int(at // _DAY) * _DAY
    moment = datetime.fromtimestamp(at, timezone.utc)
    return int(datetime(moment.year, moment.month, 1, tzinfo=timezone.utc).timestamp())


def end_of(window: str, start: int) -> int:
    """When the window ends that began at `start`: the first moment that is no longer in it."""
    if window == "minute":
        return start + _MINUTE
    if window == "day":
        return start + _DAY
    # 32 days after the first is always in the next month.
    return start_of("month", start + 32 * _DAY)

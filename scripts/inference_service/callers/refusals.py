"""Why a request is not admitted: a limit is reached, or nobody can tell whether it is."""

from __future__ import annotations

from datetime import datetime, timezone

from inference_service.callers import money
from inference_service.callers.pools import Pool
from inference_service.callers.windows import Quantity

_RETRY_WHEN_HELD = 2.0


class LimitExceeded(Exception):
    """The request would exceed a limit of its caller; nothing was spent.

    `limit` names it (`requests_per_minute`, `usd_per_day` …), `error_type` is what the row says, `retry_after` the
    seconds after which it is worth trying again, `message` names limit, value, window and when that ends.
    """

    def __init__(self, quantity: Quantity, retry_after: float, message: str) -> None:
        super().__init__(message)
        self.limit = quantity.name
        self.error_type = quantity.error_type
        self.retry_after = retry_after
        self.message = message


class LimitsUnavailable(Exception):
    """The database that all gateways count in does not answer, and this process has nothing left that it may give out.

    A caller with limits is never served without them. Callers without limits are not concerned.
    """

    error_type = "limits_unavailable"

    def __init__(self, retry_after: float, message: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.message = message


def exceeded(caller_name: str, pool: Pool, amount: int, now: float) -> LimitExceeded:
    """The refusal of a request that takes `amount` out of a pool that has not enough, as of `now`."""
    quantity = pool.quantity
    until_end = max(pool.end - now, 0.001)
    ends = datetime.fromtimestamp(pool.end, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def shown(number: int) -> str:
        return f"{money.as_usd(number)} USD" if quantity.is_money else str(number)

    message = (
        f"{quantity.name} of {caller_name} is {shown(pool.limit)}, {shown(pool.used)} of it used in this"
        f" {quantity.window} (UTC), which ends at {ends}; this request needs up to {shown(amount)}"
    )
    if amount > pool.limit:
        return LimitExceeded(quantity, until_end, f"{message}: more than the limit ever allows")
    if pool.used + amount <= pool.limit:
        # Requests under way will mostly cost less than their estimates.
        return LimitExceeded(
            quantity, min(_RETRY_WHEN_HELD, until_end), f"{message}; the rest is set aside for requests under way"
        )
    return LimitExceeded(quantity, until_end, message)

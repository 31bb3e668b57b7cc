"""Why a request is not admitted: a limit is reached, or nobody can tell whether it is."""

from __future__ import annotations

from inference_service.callers.windows import Quantity


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

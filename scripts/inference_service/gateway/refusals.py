"""What the gateway says when it does not answer a request: one refusal, in the words of the API that was asked."""

from __future__ import annotations

import orjson

from inference_service.gateway.tapping import Shape

OPENAI: Shape = "openai"
ANTHROPIC: Shape = "anthropic"


class Refusal(Exception):
    """A request that gets no answer, and why.

    `type` is our own word for it, which the log keeps (`row.error_type`). `param` is the field of the request that is
    to blame. `retry_after` is seconds after which another try can succeed.
    """

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        fix: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.message = f"{message}; {fix}" if fix else message
        self.param = param
        self.retry_after = retry_after

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Retry-After in whole seconds, rounded up, where there is one."""
        if self.retry_after is None:
            return []
        return [(b"retry-after", b"%d" % max(1, -int(-self.retry_after // 1)))]


# The official SDKs choose their exception by the status; the type is for people and logs, in the vendors' own words.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def body(refusal: Refusal, shape: Shape, request_id: str) -> bytes:
    """The refusal as the JSON error of that API; our own word for it stands in `code`."""
    if shape == ANTHROPIC:
        type = _ANTHROPIC_TYPES.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")
        error = {"type": type, "message": refusal.message, "code": refusal.type}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
    type = "server_error" if refusal.status >= 500 else "invalid_request_error"
    error = {"message": refusal.message, "type": type, "param": refusal.param, "code": refusal.type}  # type: ignore[dict-item]
    return orjson.dumps({"error": error})


def event(refusal: Refusal, shape: Shape, request_id: str) -> bytes:
    """The refusal as the last event of a stream that has begun."""
    data = body(refusal, shape, request_id)
    return b"event: error\ndata: " + data + b"\n\n" if shape == ANTHROPIC else b"data: " + data + b"\n\n"

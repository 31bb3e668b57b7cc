"""What the gateway says when it does not answer a request: one refusal, in the words of the API that was asked."""

from __future__ import annotations

import orjson

from inference_service.gateway.tapping import Shape
from inference_service.gateway.translation import errors

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


def body(refusal: Refusal, shape: Shape, request_id: str) -> bytes:
    """The refusal as the JSON error of that API; our own word for it stands in `code`."""
    status = refusal.status
    if shape == ANTHROPIC:
        document = errors.anthropic(errors.anthropic_type(status), refusal.message, request_id)
        document["error"]["code"] = refusal.type
    else:
        document = errors.openai(errors.openai_type(status), refusal.message, param=refusal.param, code=refusal.type)
    return orjson.dumps(document)


def event(refusal: Refusal, shape: Shape, request_id: str) -> bytes:
    """The refusal as the last event of a stream that has begun."""
    data = body(refusal, shape, request_id)
    return b"event: error\ndata: " + data + b"\n\n" if shape == ANTHROPIC else b"data: " + data + b"\n\n"

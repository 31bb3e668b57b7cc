"""One upstream: its connections, its guard, and the headers of the requests that it gets.

The headers are our own, made of what we know: nothing that a caller wrote gets among them but what was checked.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from inference_service.gateway.refusals import ANTHROPIC, OPENAI
from inference_service.gateway.tapping import Shape
from inference_service.gateway.upstream.guard import Guard
from inference_service.gateway.upstream.origin import header_block, parse_base
from inference_service.gateway.upstream.pool import Pool

PATHS = {OPENAI: b"/v1/chat/completions", ANTHROPIC: b"/v1/messages"}
COUNT_PATH = PATHS[ANTHROPIC] + b"/count_tokens"


class Upstream:
    """`name` is what errors call it, `target` where its models answer, `headers` the block that every request has."""

    def __init__(
        self,
        name: str,
        url: str,
        shape: Shape,
        guard: Guard,
        *,
        credential: tuple[bytes, bytes] | None = None,
        connect_seconds: float,
        max_connections: int,
        idle_seconds: float,
    ) -> None:
        """`credential` is the header that lets us in, None where none is wanted.

        Raises:
            ValueError: the URL is none that can be asked, or the credential no header.
        """
        origin, prefix = parse_base(url)
        self.name = name
        self.guard = guard
        self.pool = Pool(
            origin,
            ssl=ssl.create_default_context() if origin.tls else None,
            max_connections=max_connections,
            connect_timeout=connect_seconds,
            idle_timeout=idle_seconds,
        )
        self._prefix = prefix.encode("ascii")
        self.target = self._prefix + PATHS[shape]
        fields = [(b"content-type", b"application/json"), (b"user-agent", b"tao-run-inference-service")]
        self.headers = header_block([*fields, credential] if credential else fields)

    def headers_with(self, more: Mapping[bytes, bytes] | None) -> bytes:
        """The block with further headers; their names and values are the gateway's own, or checked by it."""
        return self.headers + b"".join(b"%b: %b\r\n" % line for line in more.items()) if more else self.headers

    def target_for(self, path: bytes) -> bytes:
        """The request target for another path of the same API."""
        return self._prefix + path

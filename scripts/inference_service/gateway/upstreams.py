"""One upstream: its connections, its guard, and the headers of the requests that it gets.

The headers are our own, made of what we know: nothing that a caller wrote gets among them but what was checked.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from inference_service.gateway.refusals import ANTHROPIC, OPENAI
from inference_service.gateway.tapping import Shape
from inference_service.gateway.upstream.guard import Guard
from inference_service.gateway.upstream.origin import HeaderBlock, header_block, parse_base
from inference_service.gateway.upstream.pool import Pool

PATHS = {OPENAI: b"/v1/chat/completions", ANTHROPIC: b"/v1/messages"}
COUNT_PATH = PATHS[ANTHROPIC] + b"/count_tokens"
MODEL_PATHS: Mapping[str, Shape] = {
    **{path.decode(): shape for shape, path in PATHS.items()},
    COUNT_PATH.decode(): ANTHROPIC,
}
"""Where models are asked, each with the shape that is spoken there."""
_MOST_COMBINED = 256


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
        self._combined: dict[tuple[tuple[bytes, bytes], ...], HeaderBlock] = {}
        self.headers = header_block([*fields, credential] if credential else fields)

    def headers_with(self, more: Mapping[bytes, bytes] | None) -> HeaderBlock:
        """The block with further headers; few combinations come again and again, so they are remembered."""
        if not more:
            return self.headers
        key = tuple(more.items())
        block = self._combined.get(key)
        if block is None:
            block = HeaderBlock(self.headers + header_block(key))
            if len(self._combined) < _MOST_COMBINED:
                self._combined[key] = block
        return block

    def target_for(self, path: bytes) -> bytes:
        """The request target for another path of the same API."""
        return self._prefix + path

"""What tests of the client towards an upstream share: a pool for a server of theirs, and one whole request."""

from __future__ import annotations

from typing import Any

from doubles.raw_http_server import (
    Server,
)

from inference_service.gateway.upstream import (
    Origin,
    Pool,
    header_block,
)

HEADERS = header_block([(b"content-type", b"application/json"), (b"x-api-key", b"k")])


def pool_of(server: Server, **settings: Any) -> Pool:
    return Pool(Origin(server.host, server.port), **settings)


async def ask(
    pool: Pool, target: bytes = b"/", body: Any = b"{}", timeout: float = 10, **more: Any
) -> tuple[int, bytes]:
    response = await pool.send(b"POST", target, HEADERS, body, timeout=timeout, **more)
    return response.status, await response.read(1 << 26)

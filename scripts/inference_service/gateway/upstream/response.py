"""One answer of an upstream, as its reader sees it: status and headers are there, the body comes in pieces.

An answer owns what has been read of it. The connection is free for the next request as soon as the last byte has been
parsed, whether or not the reader has taken it. Until then, a reader that pauses pauses the upstream: above `HIGH_WATER`
bytes that nobody has taken the connection is no longer read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference_service.gateway.upstream.errors import BadAnswer, Closed

if TYPE_CHECKING:
    from inference_service.gateway.upstream.connection import Connection

HIGH_WATER = 256 * 1024  # bytes of a body that wait for their reader before the upstream is made to wait


class Response:
    """`status`, `headers` (lower-case names, in the order in which they came), `header(name)`; then the body.

    `await read(limit)` for all of it, or `async for piece in response` / `await piece()` for what has come meanwhile.
    Whoever does not read to the end must `close()`. A wait that is cancelled closes the connection.

    `connect_seconds` is what making a connection took (0.0 when `reused`), `timeout` the longest silence in seconds
    that a wait for more of the body bears; it may be changed at any time.
    """

    __slots__ = (
        "complete",
        "connect_seconds",
        "connection",
        "content_length",
        "error",
        "handed_over",
        "head_only",
        "headers",
        "pieces",
        "reused",
        "status",
        "timeout",
        "touched",
        "unread",
        "until_close",
        "waiter",
    )

    def __init__(
        self, connection: Connection, *, timeout: float, head_only: bool, reused: bool, connect_seconds: float
    ) -> None:
        self.connection = connection
        self.timeout = timeout
        self.head_only = head_only
        self.reused = reused
        self.connect_seconds = connect_seconds
        self.status = 0  # no head yet
        self.headers: list[tuple[bytes, bytes]] = []
        self.content_length: int | None = None
        self.until_close = False
        self.touched = False  # a byte of the answer has come
        self.handed_over = False  # the reader has been told of the head
        self.complete = False
        self.error: Exception | None = None
        self.pieces: list[bytes] = []
        self.unread = 0
        self.waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of that lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read(self, limit: int) -> bytes:
        """The whole body, or what is left of it. Raises BadAnswer when that is more than `limit` bytes."""
        if self.content_length is not None and self.content_length > limit and not self.head_only:
            raise self._too_long(limit)
        if self.complete and self.unread <= limit:
            return self._take()
        gathered = bytearray()
        while True:
            gathered += self._take()
            if len(gathered) > limit:
                raise self._too_long(limit)
            if self.error is not None:
                raise self.error
            if self.complete:
                return bytes(gathered)
            await self._more()

    async def piece(self) -> bytes | None:
        """What has come since the last piece, never empty; None at the end. Raises UpstreamError."""
        while not self.pieces:
            if self.error is not None:
                raise self.error
            if self.complete:
                return None
            await self._more()
        return self._take()

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.piece()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Let go of the answer: the connection is cut unless the answer is whole (then it is already in use again)."""
        if not self.complete and self.error is None:
            self.pieces.clear()
            self.connection.drop(Closed(f"the answer of {self.connection.origin} was closed", before_any_byte=False))

    def fail(self, error: Exception) -> None:
        """What the connection says when there will be no more."""
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _take(self) -> bytes:
        pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        self.unread = 0
        if self.connection.reading_paused:
            self.connection.resume_for(self)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _more(self) -> None:
        if self.waiter is not None:
            raise RuntimeError("this answer is being read already")
        connection = self.connection
        self.waiter = waiter = connection.loop.create_future()
        connection.expect_within(self.timeout)
        try:
            await waiter
        except asyncio.CancelledError:
            self.close()
            raise

    def _too_long(self, limit: int) -> BadAnswer:
        error = BadAnswer(f"the answer of {self.connection.origin} is longer than {limit} bytes", before_any_byte=False)
        self.pieces.clear()
        if not self.complete and self.error is None:
            self.connection.drop(error)
        return error

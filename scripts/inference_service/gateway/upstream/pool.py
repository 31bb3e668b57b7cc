"""The connections to one upstream: kept, reused last-in-first-out, limited in number, handed out in order of asking.

What it is: HTTP/1.1 over TCP or TLS, bodies both ways by length, in chunks or until the connection closes, streamed
with back-pressure. What it is not: no proxies, no redirects, no cookies, no decompression (every request says
`accept-encoding: identity`), no Expect. The usual path of a request that finds a kept connection takes one write, one
future and no task.

A slot is the right to have a connection. It is taken before connecting, travels with the connection, and comes back
when that is gone; whoever waits for one holds it from the moment it is handed over, so that a cancelled wait gives
it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator

from inference_service.gateway.upstream.connecting import connect
from inference_service.gateway.upstream.connection import Connection
from inference_service.gateway.upstream.errors import PoolBusy, Reset, UpstreamError
from inference_service.gateway.upstream.origin import HeaderBlock, Origin, check_block, request_start
from inference_service.gateway.upstream.response import Response

STALE_SECONDS = 1.0  # a kept connection that its upstream closed meanwhile shows it within a round trip
_BODILESS = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"))


class Pool:
    """Sends requests to `origin`. Belongs to the event loop in which it is first used.

    `ssl` is needed for an https origin. `connect_timeout` and `idle_timeout` (how long an unused connection is kept)
    are seconds; at most `max_connections` are open or being made at any moment.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        ssl: ssl.SSLContext | None = None,
        max_connections: int = 512,
        connect_timeout: float = 10.0,
        idle_timeout: float = 30.0,
    ) -> None:
        if origin.tls != (ssl is not None):
            raise ValueError(f"{origin} {'needs' if origin.tls else 'takes no'} TLS settings")
        if max_connections < 1:
            raise ValueError(f"max_connections is {max_connections}")
        self.origin = origin
        self.max_connections = max_connections
        self.connect_timeout = connect_timeout
        self.idle_timeout = idle_timeout
        self.closed = False
        self._ssl = ssl
        self._slots = 0  # taken
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._last_line: tuple[bytes, bytes] = (b"", b"")
        self._last_start = b""
        self._last_headers = b""

    @property
    def connections(self) -> int:
        """How many are open or being made."""
        return self._slots

    @property
    def idle(self) -> int:
        """How many of them wait for a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: bytes,
        body: bytes | AsyncIterator[bytes] = b"",
        *,
        timeout: float,
        length: int | None = None,
    ) -> Response:
        """Send one request; returns as soon as the status and headers of its answer are there.

        `headers` are encoded lines without those of OWN_HEADERS: Host, Accept-Encoding and framing are written here.
        `header_block` makes them; two of its blocks may be added; any other bytes are checked, which takes a few
        microseconds unless they are the same object as last time.

        A body that is an iterator is pulled as fast as the upstream takes it, and sent in chunks unless its `length`
        is known. An answer of 400 and above that comes before the whole of it ends the sending.

        `timeout` is the longest time in seconds to wait for the upstream at a stretch: for a free connection, for the
        head of the answer from the end of the request on, for room for more of the body, then for each next piece.

        Raises UpstreamError (PoolBusy, ConnectFailed, Reset, TimedOut, BadAnswer), what `body` raises, ValueError for a
        request that must not be sent. When cancelled it closes the connection.

        A kept connection that turns out to be closed within a second, before any byte of an answer, was most likely
        closed before the request came: the request is sent again, once, on another connection, if its body is bytes.
        """
        head = self._head(method, target, headers, body, length)
        head_only = method == b"HEAD"
        connection = self._take_idle() or await self._obtain(timeout)
        retry = isinstance(body, bytes)
        while True:
            response, answered = connection.begin(head, body, length, timeout=timeout, head_only=head_only)
            sent_at = connection.loop.time()
            try:
                await answered
            except asyncio.CancelledError:
                response.close()
                raise
            error = response.error
            if error is None or response.status:
                return response
            if not (
                retry
                and response.reused
                and isinstance(error, Reset)
                and error.before_any_byte
                and connection.loop.time() - sent_at < STALE_SECONDS
            ):
                raise error
            retry = False
            connection = await self._obtain(timeout)

    def close(self) -> None:
        """Close what is idle, refuse further requests; those under way finish, then their connections close."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self.drop_idle()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self._refusal())
        self._waiters.clear()

    def drop_idle(self) -> None:
        """Close the connections that nobody uses; the next request makes a new one."""
        for connection in tuple(self._idle):
            connection.drop()

    # ---- what a connection tells

    def release(self, connection: Connection) -> None:
        """It may carry another request: the first who waits has it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if self.closed:
            connection.drop()
            return
        keep = self.idle_timeout
        if connection.keep_seconds is not None and connection.keep_seconds < keep:
            keep = connection.keep_seconds
        connection.idle_until = connection.loop.time() + keep
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(keep + 0.01, self._sweep)

    def gone(self, connection: Connection) -> None:
        """It is closed: its slot is free."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._free_slot()

    # ---- connections and slots

    def _take_idle(self) -> Connection | None:
        idle = self._idle
        while idle:
            connection = idle[-1]
            if connection.idle_until > connection.loop.time() and not connection.transport.is_closing():
                return idle.pop()
            connection.drop()
        return None

    async def _obtain(self, timeout: float) -> Connection:
        loop = asyncio.get_running_loop()
        while True:
            if self.closed:
                raise self._refusal()
            connection: Connection | None = None
            if self._slots < self.max_connections:
                self._slots += 1
            else:
                # One may have come back while a second attempt was on its way here.
                connection = self._take_idle() or await self._wait(loop, timeout)
            if connection is None:
                return await self._connect(loop, timeout)
            if not connection.closed and not connection.transport.is_closing():
                return connection
            connection.drop()  # it ended between being handed over and now, and its slot is free

    async def _wait(self, loop: asyncio.AbstractEventLoop, timeout: float) -> Connection | None:
        """A connection, or None: a slot for one."""
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(timeout, self._give_up, waiter, timeout)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                connection = waiter.result()
                if connection is None:
                    self._free_slot()
                elif not connection.closed:
                    self.release(connection)
            self._forget(waiter)
            raise
        except PoolBusy:
            self._forget(waiter)
            raise
        finally:
            timer.cancel()

    def _forget(self, waiter: asyncio.Future[Connection | None]) -> None:
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)

    def _give_up(self, waiter: asyncio.Future[Connection | None], timeout: float) -> None:
        if not waiter.done():
            waiter.set_exception(
                PoolBusy(
                    f"none of the {self.max_connections} connections to {self.origin} was free within {timeout:g} s"
                )
            )

    async def _connect(self, loop: asyncio.AbstractEventLoop, timeout: float) -> Connection:
        """Turn the slot that the caller holds into a connection; without one the slot is given back."""
        limit = min(timeout, self.connect_timeout)
        try:
            connection = await connect(lambda: Connection(_Attempt(), self.origin, loop), self.origin, self._ssl, limit)
            if connection.closed:
                raise Reset(f"the connection to {self.origin} ended as soon as it was made")
        except BaseException:
            self._free_slot()
            raise
        connection.owner = self
        return connection

    def _free_slot(self) -> None:
        self._slots -= 1
        while self._waiters and self._slots < self.max_connections:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._slots += 1
                waiter.set_result(None)

    def _sweep(self) -> None:
        self._sweeper = None
        if not self._idle:
            return
        loop = self._idle[0].loop
        now = loop.time()
        for connection in tuple(self._idle):
            if connection.idle_until <= now:
                connection.drop()
        if self._idle:
            first = min(connection.idle_until for connection in self._idle)
            # Coarsely: one timer for all, and none that fires for every request of a busy pool.
            self._sweeper = loop.call_at(max(first, now + 0.1) + 0.01, self._sweep)

    # ---- bytes

    def _head(
        self, method: bytes, target: bytes, headers: bytes, body: bytes | AsyncIterator[bytes], length: int | None
    ) -> bytes:
        line = (method, target)
        if line != self._last_line:
            self._last_start = request_start(self.origin, method, target)
            self._last_line = line
        if headers.__class__ is not HeaderBlock and headers is not self._last_headers:
            check_block(headers)
            self._last_headers = headers
        if isinstance(body, bytes):
            if body or method not in _BODILESS:
                length = len(body)
            else:
                return b"".join((self._last_start, headers, b"\r\n"))
        if length is None:
            return b"".join((self._last_start, headers, b"transfer-encoding: chunked\r\n\r\n"))
        return b"".join((self._last_start, headers, b"content-length: %d\r\n\r\n" % length))

    def _refusal(self) -> UpstreamError:
        return PoolBusy(f"the connections to {self.origin} are being closed")


class _Attempt:
    """Who owns a connection that is not the pool's yet: its slot is held by whoever is connecting."""

    def release(self, connection: Connection) -> None:
        """Never called: it has carried nothing."""

    def gone(self, connection: Connection) -> None:
        """Nothing to give back."""

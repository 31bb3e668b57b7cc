"""One HTTP/1.1 connection to an upstream: a transport, llhttp's parser, and at most one request at a time.

It belongs to a pool, which it tells two things, each once: `release` (the answer is whole and nothing speaks against
another request) and `gone`. Everything that is not exactly one well-formed answer ends the connection, so that no
answer can ever be taken for that of another request.

Time is kept by one timer per connection that is moved when it fires, not when a deadline changes: a request costs one
assignment. The clock runs only while the upstream is the one who is waited for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from inference_service.gateway.upstream.errors import BadAnswer, Reset, TimedOut, UpstreamError
from inference_service.gateway.upstream.response import HIGH_WATER, Response

if TYPE_CHECKING:
    from inference_service.gateway.upstream.origin import Origin

MAX_HEAD_BYTES = 64 * 1024  # of the head with its interim answers; also of chunk extensions and trailers between data
MAX_HEADERS = 128
JOIN_BELOW = 64 * 1024  # bytes up to which copying the body behind the head is cheaper than a second buffer
MAX_PIECES = 4096  # that wait for their reader: a body cut into single bytes must not cost fifty times its size
_CLOCK_GRAIN = 0.002  # seconds; uvloop's clock counts milliseconds
_READ_HERE = frozenset((b"content-length", b"transfer-encoding", b"keep-alive"))
_KEEP_ALIVE_SECONDS = re.compile(rb"timeout\s*=\s*(\d{1,6})", re.IGNORECASE)


class Owner(Protocol):
    """What a connection needs of its pool."""

    def release(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...


class _Trailing(Exception):
    """Bytes after the end of the answer."""


class Connection(asyncio.Protocol):
    """See the module. `drop()` closes at once, in any state, any number of times."""

    __slots__ = (
        "chunked",
        "closed",
        "connect_seconds",
        "deadline",
        "exchange",
        "idle_until",
        "interim",
        "keep",
        "keep_seconds",
        "loop",
        "origin",
        "owner",
        "parser",
        "quiet",
        "reading_paused",
        "refused",
        "room",
        "sender",
        "timer",
        "timer_at",
        "transport",
        "unsent",
        "used",
        "writing_paused",
    )

    def __init__(self, owner: Owner, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.owner = owner
        self.origin = origin
        self.loop = loop
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.parser = httptools.HttpResponseParser(self)
        self.exchange: Response | None = None
        self.closed = False
        self.used = False  # it has carried a whole answer
        self.connect_seconds = 0.0
        self.idle_until = 0.0
        self.keep_seconds: float | None = None  # what the upstream's Keep-Alive header promises
        self.keep = True  # nothing in this exchange speaks against another one
        self.chunked = False
        self.interim = False  # the head that was read is that of a 1xx answer
        self.quiet = 0  # bytes read since the last ones that were of use to the reader
        self.refused: UpstreamError | None = None  # why a callback stopped the parser
        self.deadline: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at = 0.0
        self.unsent = 0  # bytes of a large body that the transport still held when last looked at
        self.sender: asyncio.Task[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self.writing_paused = False
        self.reading_paused = False

    # ---- requests

    def begin(
        self,
        head: bytes,
        body: bytes | AsyncIterator[bytes],
        length: int | None,
        *,
        timeout: float,
        head_only: bool,
    ) -> tuple[Response, asyncio.Future[None]]:
        """Send a request; the future is done once the answer's status is known or it has an error.

        `head` is complete with its empty line. An iterator is sent by a task of its own, in chunks without a `length`.
        """
        reused = self.used
        response = Response(
            self,
            timeout=timeout,
            head_only=head_only,
            reused=reused,
            connect_seconds=0.0 if reused else self.connect_seconds,
        )
        self.exchange = response
        self.keep = True
        self.chunked = False
        self.quiet = 0
        response.waiter = waiter = self.loop.create_future()
        if isinstance(body, bytes):
            if len(body) <= JOIN_BELOW:
                self.transport.write(head + body)
            else:
                self.transport.writelines((head, body))
                self.unsent = self.transport.get_write_buffer_size()
            self.expect_within(timeout)
        else:
            self.transport.write(head)
            self.sender = self.loop.create_task(self._send_body(response, body, length, timeout))
        return response, waiter

    async def _send_body(
        self, response: Response, body: AsyncIterator[bytes], length: int | None, timeout: float
    ) -> None:
        left = length
        try:
            try:
                async for piece in body:
                    if self.sender is None:
                        return
                    if not piece:
                        continue
                    if left is None:
                        self.transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
                    else:
                        left -= len(piece)
                        if left < 0:
                            raise ValueError(f"the body is longer than the {length} bytes that were announced")
                        self.transport.write(piece)
                    if self.writing_paused:
                        self.room = self.loop.create_future()
                        self.expect_within(timeout)
                        await self.room
                        if self.exchange is not response:
                            return
                        self.deadline = None
            finally:
                close = getattr(body, "aclose", None)
                if close is not None:
                    await close()
            if left:
                raise ValueError(f"the body is {left} bytes shorter than the {length} that were announced")
            if left is None:
                self.transport.write(b"0\r\n\r\n")
            self.sender = None
            if response.waiter is not None:
                self.expect_within(timeout)
        except Exception as error:
            self.sender = None
            if self.exchange is response:
                self.drop(error)

    # ---- time

    def expect_within(self, seconds: float) -> None:
        """From now on the upstream has this long."""
        self.deadline = deadline = self.loop.time() + seconds
        if self.timer is None or self.timer_at > deadline:
            self._set_timer(deadline)

    def _set_timer(self, at: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(at, self._on_timer)
        self.timer_at = at

    def _on_timer(self) -> None:
        self.timer = None
        response = self.exchange
        if self.deadline is None or response is None:
            return
        if self.deadline > self.loop.time() + _CLOCK_GRAIN:
            self._set_timer(self.deadline)
            return
        waiting = self.transport.get_write_buffer_size()
        if waiting < self.unsent:
            # A large body is on its way still: that is no silence.
            self.unsent = waiting
            self.expect_within(response.timeout)
            return
        part = "more of its answer" if response.status else "an answer"
        self.drop(
            TimedOut(
                f"{self.origin} did not send {part} within {response.timeout:g} s",
                before_any_byte=not response.touched,
            )
        )

    # ---- the end

    def drop(self, error: Exception | None = None) -> None:
        """Close at once. A request that is under way fails with `error`."""
        if not self.closed:
            self.closed = True
            self.deadline = None
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            self._stop_sending()
            if self.transport is not None:
                self.transport.abort()
            self.owner.gone(self)
        response = self.exchange
        if response is not None:
            self.exchange = None
            response.fail(error or self._cut(response, "was closed"))

    def _stop_sending(self) -> None:
        sender = self.sender
        if sender is not None:
            self.sender = None
            self.keep = False
            sender.cancel()
        if self.room is not None and not self.room.done():
            self.room.set_result(None)

    def _cut(self, response: Response, how: str) -> Reset:
        when = "in the middle of its answer" if response.touched else "before it answered"
        return Reset(f"the connection to {self.origin} {how} {when}", before_any_byte=not response.touched)

    def _finish(self, response: Response) -> None:
        """The answer is whole."""
        response.complete = True
        self.exchange = None
        self.deadline = None
        self.used = True
        if self.sender is not None or (self.unsent and self.transport.get_write_buffer_size()):
            self.keep = False  # it was answered before the request was sent
        self.unsent = 0
        if self.keep and not self.closed:
            if self.reading_paused:
                self._resume_reading()
            self.owner.release(self)
        else:
            self.drop()
        response.wake()

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        """The first byte of a head: the answer's, an interim one's, or one too many."""
        response = self.exchange
        if response is None or response.complete:
            raise _Trailing

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, or a trailer, which nobody reads."""
        response = self.exchange
        if response is None or response.status:
            return
        name = name.lower()
        response.headers.append((name, value))
        if name in _READ_HERE:
            self._note(response, name, value)

    def _note(self, response: Response, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            response.content_length = int(value)  # digits, and one header of them: llhttp has seen to that
        elif name == b"transfer-encoding":
            if self.chunked or value.strip().lower() != b"chunked":
                raise self._refuse(f"answered in the transfer encoding {value[:100]!r}")
            self.chunked = True
        else:
            promised = _KEEP_ALIVE_SECONDS.search(value)
            if promised is not None:
                # It closes at that time on its own clock; a request that is sent then is lost.
                self.keep_seconds = max(0.0, int(promised[1]) - 1.0)

    def on_headers_complete(self) -> None:
        """The head is whole: what kind of answer is it, and where will it end?"""
        response = self.exchange
        if response is None:
            return
        headers = response.headers
        if len(headers) > MAX_HEADERS:
            raise self._refuse(f"answered with more than {MAX_HEADERS} headers")
        if self.quiet > MAX_HEAD_BYTES and sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
            raise self._refuse(f"answered with more than {MAX_HEAD_BYTES} bytes of headers")
        status = self.parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                raise self._refuse(f"answered with the status {status}")
            self.interim = True
            return
        if status > 599:
            raise self._refuse(f"answered with the status {status}")
        if not self.parser.should_keep_alive():
            self.keep = False
        if response.head_only:
            # llhttp cannot be told that no body follows: this was the parser's last answer.
            self.keep = False
            response.complete = True
        elif status == 204 or status == 304:
            response.content_length = None
        elif response.content_length is None and not self.chunked:
            response.until_close = True
        response.status = status

    def on_body(self, body: bytes) -> None:
        """Bytes of the body, free of framing."""
        response = self.exchange
        if response is None or response.complete:
            raise _Trailing
        response.pieces.append(body)
        response.unread += len(body)
        self.quiet = 0

    def on_message_complete(self) -> None:
        """The end of an answer, or of an interim one (RFC 9110 15.2: any number of those may come)."""
        response = self.exchange
        if response is None:
            return
        if self.interim:
            self.interim = self.chunked = False
            response.headers.clear()
            response.content_length = None
        else:
            response.complete = True

    def _refuse(self, why: str) -> BadAnswer:
        # llhttp replaces what a callback raises by an error of its own.
        self.refused = self._bad(why)
        return self.refused

    def _bad(self, why: str) -> BadAnswer:
        return BadAnswer(f"{self.origin} {why}", before_any_byte=False)

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected (and its TLS handshake done)."""
        self.transport = cast(asyncio.Transport, transport)
        if self.closed:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, then decide once per read: whole, too much of nothing, or something for the reader."""
        response = self.exchange
        if response is None:
            self.drop()  # nothing was asked
            return
        response.touched = True
        self.quiet += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not response.complete:
                refused = self.refused
                if refused is None:
                    refused = self._bad(f"sent no well-formed answer: {error}")
                self.drop(refused)
                return
            self.keep = False
        except httptools.HttpParserUpgrade:
            self.drop(self._bad("changed the protocol, unasked"))
            return
        if response.complete:
            self._finish(response)
            return
        if self.quiet > MAX_HEAD_BYTES:
            self.drop(self._bad(f"sent more than {MAX_HEAD_BYTES} bytes of headers or other framing"))
            return
        if response.status >= 400 and self.sender is not None:
            self._stop_sending()
        if (response.unread > HIGH_WATER or len(response.pieces) > MAX_PIECES) and not self.reading_paused:
            self.reading_paused = True
            self.transport.pause_reading()
        if response.waiter is not None and response.status and (response.pieces or not response.handed_over):
            response.handed_over = True
            self.deadline = None
            response.wake()

    def eof_received(self) -> bool:
        """The upstream has said all it will say."""
        self._ended(None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed, by whomever."""
        self._ended(error)

    def _ended(self, error: Exception | None) -> None:
        response = self.exchange
        if response is not None and response.until_close and error is None:
            self.keep = False
            self._finish(response)
        elif response is not None:
            reason = f" ({error})" if error is not None and str(error) else ""
            self.drop(self._cut(response, f"ended{reason}"))
        else:
            self.drop()

    def pause_writing(self) -> None:
        """The transport holds as much of the request as it should."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.writing_paused = False
        if self.room is not None and not self.room.done():
            self.room.set_result(None)

    def resume_for(self, response: Response) -> None:
        """The reader has taken what was there."""
        if self.reading_paused and self.exchange is response:
            self._resume_reading()

    def _resume_reading(self) -> None:
        self.reading_paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

"""uvicorn's HTTP/1.1 server, and what it lacks in front of paying traffic.

When a request's first byte arrived, so that our own waiting is in its latency. A client that is gone takes its request
with it. Heads that are too long, clients that never finish sending and clients that never read are shown the door.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

LONGEST_HEAD = 65_536
"""Bytes of the request line and all header lines together."""

HEAD_SECONDS = 10.0
BODY_STALL_SECONDS = 60.0
READER_STALL_SECONDS = 120.0


class JoiningTransport(asyncio.Transport):
    """Writes the head of an answer together with what follows it: one system call, and one packet, where two would go.

    uvicorn writes them one after the other. `hold_next()` before the head; whoever does so writes something after it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._write = transport.write
        self._holds_next = False
        self._held = b""
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]

    def hold_next(self) -> None:
        """Keep what is written next until something more is."""
        self._holds_next = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._holds_next:
            self._holds_next = False
            self._held = bytes(data)
        elif self._held:
            data, self._held = self._held + data, b""
            self._write(data)
        else:
            self._write(data)

    def close(self) -> None:
        if self._held:
            self._write(self._held)
            self._held = b""
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """One connection. `app.malformed(status, arrived)` is called for what is no request at all."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.request_task: asyncio.Task[None] | None = None
        self.last_data = perf_counter()
        self.head_since: float | None = self.last_data
        self.unread_since: float | None = None
        self._head_bytes = 0
        self._refused_with = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.joining = JoiningTransport(transport)
        super().connection_made(self.joining)

    def data_received(self, data: bytes) -> None:
        self.last_data = perf_counter()
        super().data_received(data)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # As uvicorn does, but cycle and task are remembered: asyncio.current_task() in each request would cost more.
        cycle.scope["tao.cycle"] = cycle  # type: ignore[typeddict-unknown-key]
        self.request_task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def answer(self, cycle: RequestResponseCycle, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer, in one write; `headers` are encoded lines, with the body's length among them.

        What uvicorn's cycle does for two messages, without looking at each header again: it is ours, and well-formed.
        """
        if cycle.disconnected:
            return
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        if not cycle.keep_alive:
            headers += b"connection: close\r\n"
        self.joining.write(b"%b%b\r\n%b" % (STATUS_LINE[status], headers, body))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.joining.close()
        cycle.on_response()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self.head_since = self.last_data
        self.scope["tao.protocol"] = self  # type: ignore[typeddict-unknown-key]
        self.scope["tao.arrived"] = self.last_data  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        self._count(len(url), 414)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4, 431)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.head_since = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        status = self._refused_with or 400
        self.app.malformed(status, self.last_data)
        reason = {
            400: b"Bad Request",
            408: b"Request Timeout",
            414: b"URI Too Long",
            431: b"Request Header Fields Too Large",
        }[status]
        text = b'{"error":{"message":"this is no HTTP request that can be served: %s","type":"invalid_request_error"}}'
        text %= reason.lower()
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, reason, len(text), text)
        )
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.request_task is not None:
            self.request_task.cancel()
        # A request of a pipeline that has not begun never will.
        self.pipeline.clear()

    def pause_writing(self) -> None:
        self.unread_since = perf_counter()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.unread_since = None
        super().resume_writing()

    def close_if_stalled(self, now: float) -> None:
        """End the connection if its client takes too long; `now` by perf_counter. Called about once a second."""
        if self.head_since is not None:
            began = self.cycle is None or self.cycle.response_complete
            if began and now - self.head_since > HEAD_SECONDS:
                if self._head_bytes:
                    self._refused_with = 408
                    self.send_400_response("")
                else:
                    self.transport.close()
        elif (self.unread_since is not None and now - self.unread_since > READER_STALL_SECONDS) or (
            self.cycle is not None
            and self.cycle.more_body
            and not self.flow.read_paused
            and now - self.last_data > BODY_STALL_SECONDS
        ):
            self.transport.abort()

    def _count(self, bytes_read: int, status: int) -> None:
        self._head_bytes += bytes_read
        if self._head_bytes > LONGEST_HEAD:
            self._refused_with = status
            # httptools turns it into its own error, for which uvicorn calls send_400_response.
            raise ValueError("head too long")

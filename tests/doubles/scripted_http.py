"""A fast HTTP/1.1 server for doubles of upstream APIs: it remembers each request, and answers as badly as it is told.

asyncio and httptools, one loop in a thread of its own; what a double says is `Double.answer`. Its own endpoints, for
who has it as a process: GET /_double/requests[?since=N], POST /_double/faults (a JSON list: one per request to come),
POST /_double/set (attributes of the double by name), POST /_double/forget.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

import httptools
from doubles import faults
from doubles.faults import Fault

KEPT_BODY = 1 << 20
_REASONS = {200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 429: b"Too Many Requests"}
_HIGH_WATER = 64 << 10
Self = TypeVar("Self", bound="Double")


@dataclass
class Exchange:
    """One request that arrived, and what became of its answer. Moments are on time.monotonic()'s scale.

    `body` is all of it up to a mebibyte, and the first mebibyte of a larger one, whose `sha256` is of the whole.
    `aborted`: the client left before the answer's end.
    """

    number: int
    connection: int
    method: str
    path: str
    query: dict[str, str]
    arrived: float
    headers: dict[str, str] = field(default_factory=dict)
    header_names: list[str] = field(default_factory=list)
    body: bytes = b""
    body_bytes: int = 0
    sha256: str = ""
    status: int | None = None
    aborted: bool = False
    finished: bool = False
    ended: float | None = None

    @property
    def json(self) -> Any:
        """The body as what it says."""
        return json.loads(self.body)

    def described(self) -> dict[str, Any]:
        """As the control endpoint has it."""
        return {**dataclasses.asdict(self), "body": self.body.decode("utf-8", "replace"), "now": time.monotonic()}


class Connection(asyncio.Protocol):
    """One connection: reads requests one after the other, and is what `Double.answer` writes its answer to."""

    def __init__(self, double: Double, number: int) -> None:
        self.double, self.number = double, number
        self.exchange: Exchange | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._pieces: list[bytes] = []
        self._hash: Any = None

    # What asyncio and the parser call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.double.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.double.connections.discard(self)
        self._writable.set()
        if self.exchange is not None and not self.exchange.finished:
            self.exchange.aborted, self.exchange.ended = True, time.monotonic()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.double.broken_requests += 1
            self.transport.close()

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._names: list[str] = []

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        text = name.decode("latin-1").lower()
        self._names.append(text)
        self._headers[text] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        path, _, query = self._target.decode("latin-1").partition("?")
        self.exchange = Exchange(
            len(self.double.requests),
            self.number,
            self._parser.get_method().decode(),
            path,
            dict(parse_qsl(query)),
            time.monotonic(),
            self._headers,
            self._names,
        )
        self._pieces, self._hash = [], None
        if not path.startswith("/_double/"):
            self.double.requests.append(self.exchange)
            if self.double.read_pause:
                self.transport.pause_reading()
                asyncio.get_running_loop().call_later(self.double.read_pause, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def on_body(self, piece: bytes) -> None:
        exchange = self.exchange
        assert exchange is not None
        if exchange.body_bytes < KEPT_BODY:
            self._pieces.append(piece)
        elif self._hash is None:
            self._hash = hashlib.sha256(b"".join(self._pieces))
        exchange.body_bytes += len(piece)
        if self._hash is not None:
            self._hash.update(piece)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        assert exchange is not None
        exchange.body = b"".join(self._pieces)
        if self._hash is not None:
            exchange.sha256 = self._hash.hexdigest()
        if exchange.path.startswith("/_double/"):
            self._control(exchange)
            return
        fault = self.double.fault_of(exchange.body)
        if fault.reset:
            self.reset()
        elif not fault.hang:
            answering = self.double.answer(exchange, self, fault)
            if answering is not None:
                self._task = asyncio.get_running_loop().create_task(self._run(answering))

    async def _run(self, answering: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(ConnectionError):
            await answering

    def _control(self, exchange: Exchange) -> None:
        double, verb = self.double, exchange.path.removeprefix("/_double/")
        document: Any = {}
        if verb == "requests":
            since = int(exchange.query.get("since", "0"))
            document = [seen.described() for seen in double.requests[since:]]
        elif verb == "faults":
            double.script(*(faults.from_json(one) for one in exchange.json))
        elif verb == "set":
            for name, value in exchange.json.items():
                setattr(double, name, value)
        elif verb == "forget":
            double.forget()
        self.send(200, json.dumps(document).encode())

    # What an answer is written with

    def send(self, status: int, body: bytes, headers: bytes = b"", content_type: bytes = b"application/json") -> None:
        """The whole answer at once. `headers` are whole lines."""
        length = b"Content-Length: %d\r\n" % len(body)
        self._write(status, self._head(status, content_type, length + headers) + body)
        self.end()

    def begin(self, status: int, headers: bytes = b"", content_type: bytes = b"text/event-stream") -> None:
        """The head of a chunked answer."""
        self._write(status, self._head(status, content_type, b"Transfer-Encoding: chunked\r\n" + headers))

    def _head(self, status: int, content_type: bytes, rest: bytes) -> bytes:
        reason = _REASONS.get(status, b"Error")
        return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%s\r\n" % (status, reason, content_type, rest)

    def _write(self, status: int, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.status = status
        self.transport.write(data)

    async def chunk(self, data: bytes) -> None:
        """One chunk, once the client reads what came before."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if not self._writable.is_set():
            await self._writable.wait()

    def last_chunk(self) -> None:
        """The end of a chunked answer."""
        self.transport.write(b"0\r\n\r\n")
        self.end()

    def end(self) -> None:
        """The answer is complete; the connection is kept."""
        if self.exchange is not None and not self.transport.is_closing():
            self.exchange.finished, self.exchange.ended = True, time.monotonic()

    def cut(self) -> None:
        """Close in the middle of the answer."""
        if self.exchange is not None:
            self.exchange.finished, self.exchange.ended = True, time.monotonic()
        self.transport.close()

    def reset(self) -> None:
        """RST."""
        if self.exchange is not None:
            self.exchange.finished, self.exchange.ended = True, time.monotonic()
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Double:
    """The server, in a thread while it is used as a context. `requests` are those that came, in their order.

    `read_pause`: seconds for which a request's body is not read (beyond what came with its head). `token_delay`: those
    between two events of a stream. `always`: a fault for each request without one of its own.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: list[Exchange] = []
        self.connections: set[Connection] = set()
        self.connected = 0
        self.broken_requests = 0
        self.read_pause = 0.0
        self.token_delay = 0.0
        self.always: Fault | None = None
        self._scripted: deque[Fault] = deque()
        self._had: defaultdict[bytes, int] = defaultdict(int)
        self._socket = socket.create_server((host, port), backlog=1024)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{host}:{self.port}"

    def answer(self, exchange: Exchange, connection: Connection, fault: Fault) -> Coroutine[Any, Any, None] | None:
        """Answer at once and return None, or return what answers."""
        raise NotImplementedError

    def script(self, *to_come: Fault) -> None:
        """One fault for each of the next requests."""
        self._scripted.extend(to_come)

    def forget(self) -> None:
        """As if nothing had come and nothing were scripted."""
        self.requests.clear()
        self._scripted.clear()
        self.always = None

    def fault_of(self, body: bytes) -> Fault:
        """What is to become of the request with that body."""
        if b"[[" in body:
            asked = faults.asked_for(body)
            if asked is not None:
                fault, text = asked
                if fault.times is not None:
                    self._had[text] += 1
                    if self._had[text] > fault.times:
                        return faults.NONE
                return fault
        if self._scripted:
            return self._scripted.popleft()
        return self.always or faults.NONE

    def count(self, path: str) -> int:
        """How many requests of that path came."""
        return sum(1 for seen in self.requests if seen.path == path)

    # Running it

    def _connect(self) -> Connection:
        self.connected += 1
        return Connection(self, self.connected)

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(self._connect, sock=self._socket)
        ready()
        await self._ended.wait()
        server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve in this thread until `close`."""
        loop = _new_loop()
        try:
            loop.run_until_complete(self._serve(ready))
        finally:
            loop.close()

    def close(self) -> None:
        """Stop; connections in progress are aborted."""
        self._loop.call_soon_threadsafe(self._ended.set)

    def drop_connections(self) -> None:
        """Close every connection as a server does that restarts."""

        def drop() -> None:
            for connection in list(self.connections):
                connection.transport.abort()

        self._loop.call_soon_threadsafe(drop)

    def __enter__(self: Self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self.serve, args=(ready.set,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._thread.join(10)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())


def run(double: Double) -> None:
    """Serve as a process until a signal; one line says where."""
    print(json.dumps({"url": double.url, "port": double.port}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        double.serve()
    sys.exit(0)

"""A server of bytes: each connection runs a function of the test, which reads requests and writes what it likes.

It follows no product. It is what a client has to survive: answers cut anywhere, garbage, silence, answers before the
request is whole, connections that close when they should not. `read_request` is strict about what comes in (RFC 9112):
exactly one framing, lines that end with CR LF, one Host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Script = Callable[[Reader, Writer], Awaitable[None]]


@dataclass
class Server:
    """Where it listens, and what happened to its connections."""

    host: str
    port: int
    accepted: int = 0
    writers: list[Writer] = field(default_factory=list)
    open: int = 0


@dataclass(frozen=True)
class Request:
    """One request as it came; `body` without its chunks' framing."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Run `script` for every connection; all of them are cut at the end."""
    server = Server(host, 0)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: Reader, writer: Writer) -> None:
        server.accepted += 1
        server.open += 1
        server.writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except RuntimeError as error:
            if "closed" not in str(error):  # uvloop's word for writing to a client that is gone
                raise
        finally:
            server.open -= 1
            tasks.discard(task)
            with contextlib.suppress(RuntimeError):
                writer.close()

    listening = await asyncio.start_server(connected, host, 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tuple(tasks):
            task.cancel()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def read_head(reader: Reader) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers of the next request. Raises IncompleteReadError at the end of the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    lines = head[:-4].split("\r\n")
    assert "\n" not in head.replace("\r\n", ""), f"a bare line feed in {head!r}"
    method, target, version = lines[0].split(" ")
    assert version == "HTTP/1.1"
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, separator, value = line.partition(":")
        assert separator and name and name == name.strip(), f"no header line: {line!r}"
        assert name.lower() not in headers, f"{name} twice"
        headers[name.lower()] = value.strip()
    assert "host" in headers
    assert not ("content-length" in headers and "transfer-encoding" in headers)
    return method, target, headers


async def read_chunks(reader: Reader) -> AsyncIterator[bytes]:
    """The chunks of a chunked body, as they come."""
    while True:
        size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
        if not size:
            assert await reader.readexactly(2) == b"\r\n"
            return
        yield await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"


async def read_request(reader: Reader) -> Request:
    """The next request, whole."""
    method, target, headers = await read_head(reader)
    if "transfer-encoding" in headers:
        assert headers["transfer-encoding"] == "chunked"
        body = b"".join([chunk async for chunk in read_chunks(reader)])
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)


def answering(*answers: bytes, after: Callable[[Request], None] | None = None) -> Script:
    """Read a request, write the next answer, and again; the last answer is for all that follow."""

    async def script(reader: Reader, writer: Writer) -> None:
        count = 0
        while True:
            request = await read_request(reader)
            if after is not None:
                after(request)
            writer.write(answers[min(count, len(answers) - 1)])
            await writer.drain()
            count += 1

    return script


def plain(body: bytes, status: str = "200 OK", extra: bytes = b"") -> bytes:
    """An answer with a Content-Length."""
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status.encode(), extra, len(body), body)

"""HTTP/1.1 over a bare socket: for clients that leave, stall, or say what no HTTP library would say."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer as it came; `complete` when its end was told and reached. `headers` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool
    rest: bytes = b""

    @property
    def json(self) -> Any:
        """The body as what it says."""
        return json.loads(self.body)


def request(
    method: str, path: str, *, key: str = "", body: Any = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """A correct request. `body` is encoded as JSON unless it is bytes."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Host": "localhost", "Content-Length": str(len(data)), **(headers or {})}
    if key:
        lines.setdefault("Authorization", f"Bearer {key}")
    if data:
        lines.setdefault("Content-Type", "application/json")
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + data


@contextlib.contextmanager
def connected(port: int, timeout: float = 20, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection to a port of this machine. A small `receive_buffer` (bytes) makes a client that holds little."""
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(timeout)
        connection.connect(("127.0.0.1", port))
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes, resets, or says nothing for the connection's timeout."""
    parts = []
    with contextlib.suppress(ConnectionError, TimeoutError):
        while piece := connection.recv(65536):
            parts.append(piece)
    return b"".join(parts)


def read_until(connection: socket.socket, text: bytes) -> bytes:
    """What comes up to and including `text`; less where the connection ends before."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while text not in got[-65536 - len(text) :] and (piece := connection.recv(65536)):
            got += piece
    return bytes(got)


def read_answer(connection: socket.socket, already: bytes = b"") -> Answer:
    """The next answer, without waiting for the connection's end where the answer's own end is told."""
    got = already
    while True:
        answer = parsed(got)
        if answer is not None and answer.complete:
            return answer
        try:
            piece = connection.recv(65536)
        except ConnectionError:
            piece = b""
        if not piece:
            return answer or Answer(0, {}, got, False)
        got += piece


def ask(port: int, data: bytes, timeout: float = 20) -> Answer:
    """The answer to one request on a connection of its own."""
    with connected(port, timeout) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return read_answer(connection)


def parsed(got: bytes) -> Answer | None:
    """What has come of an answer; None while its head is not complete."""
    head, found, rest = got.partition(b"\r\n\r\n")
    if not found:
        return None
    status_line, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    status = int(status_line.split()[1])
    if headers.get("transfer-encoding") == "chunked":
        return _chunked(status, headers, rest)
    length = int(headers.get("content-length", "0"))
    return Answer(status, headers, rest[:length], len(rest) >= length, rest[length:])


def _chunked(status: int, headers: dict[str, str], rest: bytes) -> Answer:
    body = b""
    while True:
        size, found, after = rest.partition(b"\r\n")
        if not found:
            return Answer(status, headers, body, False)
        length = int(size, 16)
        if length == 0:
            return Answer(status, headers, body, after.startswith(b"\r\n"), after[2:])
        if len(after) < length + 2:
            return Answer(status, headers, body + after[:length], False)
        body += after[:length]
        rest = after[length + 2 :]


def exchange(port: int, data: bytes, silence: float = 1) -> bytes:
    """All that comes back until the other side closes, or is silent for so many seconds."""
    with connected(port, timeout=silence) as connection:
        connection.sendall(data)
        return read_all(connection)


def statuses(answers: bytes) -> list[int]:
    """The statuses of the answers in it."""
    return [int(status) for status in re.findall(rb"(?:^|\})HTTP/1\.1 (\d{3})", answers)]

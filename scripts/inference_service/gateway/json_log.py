"""One line of JSON per request on standard error, for whatever collects a container's logs.

Lines are gathered during one turn of the event loop, made into text at its end and written by a thread: whoever reads
standard error may be slow, or stand still, and must not hold up the requests. What it cannot take is dropped, and how
much was dropped is said when it reads again.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import orjson

from inference_service.request_log.rows import RequestRow

MOST_WAITING_BYTES = 4 * 1024 * 1024

# orjson escapes what JSON demands. These a terminal obeys, or shows in another order than they are in.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


class JsonLog:
    """Writes rows to a file descriptor. `observe` belongs to the event loop's thread.

    Args:
        redact: cleans the texts that a client chose.
        descriptor: where to write; standard error by default.
    """

    def __init__(self, redact: Callable[[str], str], descriptor: int = 2) -> None:
        self._redact = redact
        self._descriptor = descriptor
        self._rows: list[RequestRow] = []
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="json-log", daemon=True)
        self._thread.start()

    def observe(self, row: RequestRow) -> None:
        """Write a finished request's line, soon."""
        if not self._rows:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._rows.append(row)

    def close(self, timeout: float = 2.0) -> None:
        """Write what is left, for at most `timeout` seconds."""
        self._hand_over()
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)

    def _hand_over(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        lines = b"".join([line(row, self._redact) for row in rows])
        with self._wake:
            if self._waiting_bytes + len(lines) > MOST_WAITING_BYTES:
                self._dropped += len(rows)
                return
            self._waiting.append(lines)
            self._waiting_bytes += len(lines)
            self._wake.notify()

    def _write(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._dropped and not self._closing:
                    self._wake.wait()
                if self._closing and not self._waiting and not self._dropped:
                    return
                lines = b"".join(self._waiting)
                self._waiting.clear()
                if self._dropped:
                    told = {"event": "log_lines_dropped", "time": _iso(None), "requests": self._dropped}
                    lines += orjson.dumps(told) + b"\n"
                    self._dropped = 0
            try:
                _write_all(self._descriptor, lines)
            except OSError:
                # Nobody reads any more. The rows themselves are in the request log.
                lines = b""
            with self._wake:
                # Counted until it is out: what a reader that stands still has not taken is waiting, too.
                self._waiting_bytes = sum(map(len, self._waiting))


def line(row: RequestRow, redact: Callable[[str], str]) -> bytes:
    """A row as one line of JSON. What is unknown is left out, money is a decimal in text, times are ISO 8601 in UTC."""
    document: dict[str, Any] = {"event": "request", "time": _iso(row.time)}
    for name, value in row.__dict__.items():
        if value is None or value == "" or name == "time":
            continue
        if name in _CHOSEN_BY_CLIENTS:
            value = redact(value)
        elif name == "tags":
            if not value:
                continue
            value = {redact(key): redact(text) for key, text in value.items()}
        elif isinstance(value, Decimal):
            value = format(value, "f")
        document[name] = value
    try:
        encoded = orjson.dumps(document)
    except TypeError:
        # Half a surrogate pair, which UTF-8 cannot hold; JSON's own escape can.
        encoded = json.dumps(document).encode()
    if not encoded.isascii() or b"\x7f" in encoded:
        encoded = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded.decode()).encode()
    return encoded + b"\n"


# An upstream's error type is a text from outside as well.
_CHOSEN_BY_CLIENTS = frozenset({"route", "model", "error_type", "upstream_request_id"})


def _iso(time: float | None) -> str:
    moment = datetime.now(timezone.utc) if time is None else datetime.fromtimestamp(time, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

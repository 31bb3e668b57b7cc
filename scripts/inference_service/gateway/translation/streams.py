"""What the translations of streams have in common: events come in cut anywhere, and go out whole.

Both wire formats put each event's JSON on one `data:` line, so that lines are all there is to find. Almost every line
is a piece of text between the same bytes as the last one. Those bytes are remembered, and such a piece, which is a JSON
string in both formats, goes from the one envelope into the other as it is; every other line is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from inference_service.gateway.tapping import Shape, StreamReader
from inference_service.gateway.translation import errors

_TEXT = re.compile(rb'"(?:text|content)"\s*:\s*"')
_LONGEST_LINE = 16 * 1024 * 1024
"""Bytes. What is longer is no event; it must not fill the memory."""


class TranslatedStream(StreamReader):
    """A stream of the one shape that goes out as one of the other, `shape`.

    An error inside it becomes one of the other shape; so do a cut and what is no event. Nothing follows an error, and
    only a stream that told its end gets one.
    """

    shape: Shape
    keep_alive: bytes
    """What goes out for a sign of life that is no part of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = False
        """The answer, or an error, has been told as a whole: nothing may follow."""
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._out: list[bytes] = []
        self._before_text = b""
        self._after_text = b""

    def feed(self, piece: bytes) -> bytes:
        """Read the next bytes of the stream; the events of the other shape that they complete."""
        if self._closed:
            return b""
        lines = piece.split(b"\n")
        if len(lines) == 1:
            self._begun.append(piece)
            self._begun_bytes += len(piece)
            if self._begun_bytes > _LONGEST_LINE:
                self._fail("bad_answer", f"an event of the upstream's stream is longer than {_LONGEST_LINE} bytes")
            return self._taken()
        if self._begun:
            lines[0] = b"".join([*self._begun, lines[0]])
        rest = lines.pop()
        self._begun, self._begun_bytes = [rest] if rest else [], len(rest)
        for line in lines:
            if line and not line.startswith(b"event:"):
                self._line(line)
        return self._taken()

    def end(self) -> bytes:
        """The upstream's bytes have ended: the error event for a stream that was cut, nothing otherwise."""
        last = b"".join(self._begun)
        self._begun = []
        if _is_whole(last):  # A last line without its end; half of one is nothing.
            self._line(last)
        if not self._closed:
            self._fail("cut", errors.CUT)
        return self._taken()

    def _finish(self) -> None:
        self.finished = self._closed = True

    def _taken(self) -> bytes:
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def _line(self, line: bytes) -> None:
        if self._closed:
            return
        if self._before_text and line.startswith(self._before_text):
            end = self._end_of_text(line)
            text = line[len(self._before_text) : end]
            if end > 0 and self._is_text(text):
                self._send_text(text)
                return
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                self._done()
                return
            try:
                text_alone = self._document(orjson.loads(data))
                if text_alone:
                    self._remember(line, text_alone)
            except (orjson.JSONDecodeError, AttributeError, IndexError, KeyError, TypeError):
                self._fail("bad_answer", "an event of the upstream's stream cannot be read")
        elif line.startswith(b":"):
            self._out.append(self.keep_alive)
        elif line.startswith(b"error:"):  # llama.cpp's server names its errors by the field.
            kind, message, _ = errors.read(line[6:].strip())
            self._fail(kind, message)

    def _fail(self, kind: str | None, message: str, status: int | None = None) -> None:
        self.error_type = kind or "error"
        self._closed = True
        self._begun = []
        self._out.append(errors.event(self.shape, self.error_type, message, status))

    def _remember(self, line: bytes, text: str) -> None:
        found = _TEXT.search(line)
        if found is not None:
            end = line.find(b'"', found.end())
            # Only if the text is all there is between the two.
            if line[found.end() : end] == text.encode():
                self._before_text, self._after_text = line[: found.end()], line[end:]

    def _is_text(self, text: bytes) -> bool:
        """Whether it is one JSON string's inside; it is counted then."""
        if b'"' not in text and b"\\" not in text:
            size = len(text)
        else:
            try:
                size = len(orjson.loads(b'"%b"' % text).encode())
            except orjson.JSONDecodeError:
                return False
        self.deltas += 1
        self.produced_bytes += size
        return True

    def _end_of_text(self, line: bytes) -> int:
        """Where the text ends in a line that begins as the last one with text; -1 if the rest of it is another."""
        raise NotImplementedError

    def _send_text(self, text: bytes) -> None:
        """Send the inside of a JSON string as text of the answer."""
        raise NotImplementedError

    def _count(self, text: str) -> None:
        self.first_token = True
        self.deltas += 1
        self.produced_bytes += len(text) if text.isascii() else len(text.encode())

    def _document(self, document: Mapping[str, Any]) -> str | None:
        """Read one event; returns its text if it is nothing but a piece of the answer's text.

        Raises:
            KeyError, TypeError, AttributeError: it is none.
        """
        raise NotImplementedError

    def _done(self) -> None:
        """The event [DONE] has come."""
        raise NotImplementedError


def _is_whole(line: bytes) -> bool:
    data = line[5:].strip() if line.startswith(b"data:") else b""
    try:
        return data == b"[DONE]" or orjson.loads(data) is not None
    except orjson.JSONDecodeError:
        return False

"""Finds the few top-level fields of a JSON document that route it, while it passes by in pieces.

A document of hundreds of MiB is a few very long strings: these are crossed by searching for their end, so that a MiB
costs less than a millisecond. It is no validator: what is no JSON is refused by who gets it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import orjson

_STRUCTURE = re.compile(rb'["{}\[\],:]')
_STRING_END = re.compile(rb'["\\]')
_LONGEST_VALUE = 4096


class BodyScan:
    """`values` has the wanted fields found so far, as Python values; `duplicate` names one that came twice, which two
    readers would read differently. `ended`: the document is complete."""

    def __init__(self, wanted: Collection[str]) -> None:
        self.values: dict[str, object] = {}
        self.duplicate: str | None = None
        self.ended = False
        self.malformed = False
        self._wanted = frozenset(wanted)
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._key: str | None = None
        self._expects_key = False
        # The text of a key or of a wanted scalar, None while nothing is collected.
        self._text: bytearray | None = None

    def feed(self, piece: bytes) -> None:
        """Read the next piece."""
        at, size = 0, len(piece)
        while at < size and not self.malformed:
            at = self._string(piece, at) if self._in_string else self._structure(piece, at)

    def _string(self, piece: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            self._collect(piece, at, at + 1)
            return at + 1
        found = _STRING_END.search(piece, at)
        if found is None:
            self._collect(piece, at, len(piece))
            return len(piece)
        end = found.end()
        self._collect(piece, at, end)
        if found[0] == b"\\":
            self._escaped = True
        else:
            self._in_string = False
            if self._depth == 1 and self._expects_key:
                self._key = self._decoded_key()
                self._text = None
        return end

    def _structure(self, piece: bytes, at: int) -> int:
        found = _STRUCTURE.search(piece, at)
        if found is None:
            self._collect(piece, at, len(piece))
            return len(piece)
        start, end = found.span()
        self._collect(piece, at, start)
        token = found[0]
        if token == b'"':
            if self._depth == 0:
                self.malformed = True
                return end
            self._in_string = True
            if self._depth == 1 and self._expects_key:
                self._text = bytearray()
            self._collect(piece, start, end)
        elif token in (b"{", b"["):
            self._collect(piece, start, end)
            self._depth += 1
            if self._depth == 1:
                self.malformed = token == b"["
                self._expects_key = True
        elif token in (b"}", b"]"):
            self._depth -= 1
            if self._depth == 0:
                self._finish_value()
                self.ended = True
            else:
                self._collect(piece, start, end)
        elif self._depth == 1:
            if token == b":":
                self._expects_key = False
                self._text = bytearray() if self._key in self._wanted else None
            else:
                self._finish_value()
                self._expects_key = True
        else:
            self._collect(piece, start, end)
        return end

    def _collect(self, piece: bytes, start: int, end: int) -> None:
        text = self._text
        if text is None:
            return
        if len(text) + end - start > _LONGEST_VALUE:
            # No key and no wanted value is that long; what is dropped here is read as missing.
            self._text = None
        else:
            text += piece[start:end]

    def _decoded_key(self) -> str | None:
        try:
            key = orjson.loads(bytes(self._text)) if self._text is not None else None
        except orjson.JSONDecodeError:
            self.malformed = True
            return None
        return key if isinstance(key, str) else None

    def _finish_value(self) -> None:
        key, text = self._key, self._text
        self._key = self._text = None
        if key is None or key not in self._wanted:
            return
        if key in self.values:
            self.duplicate = key
        try:
            self.values[key] = None if text is None else orjson.loads(bytes(text))
        except orjson.JSONDecodeError:
            self.malformed = True

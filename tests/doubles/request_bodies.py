"""Reads a chat request's body as it arrives, whatever its size, in flat memory.

Media come as `data:` URIs inside the JSON text. Each is decoded on the way (its size and SHA-256 are kept) and replaced
by `data:<mime>;base64,#<index>`, so that what is left is small and can be parsed as JSON.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

CHUNK = 1 << 20
# A JSON string that begins as a data: URI. Behind a backslash the quote would not begin a string.
_DATA_URI = re.compile(rb'(?<!\\)"data:([^;"\\]{1,200});base64,')
_LONGEST_START = 220


@dataclass(frozen=True)
class DataUri:
    """One decoded `data:` URI. `encoded_size` counts base64 characters; `error` is the decoder's complaint, if any."""

    mime: str
    size: int
    sha256: str
    encoded_size: int
    error: str = ""


@dataclass(frozen=True)
class Body:
    """`text` is the JSON with every data: URI replaced; `size` and `sha256` are of the body as it was sent."""

    text: bytes
    size: int
    sha256: str
    data_uris: tuple[DataUri, ...]


def blocks(stream: BinaryIO, length: int | None) -> Iterator[bytes]:
    """The body's bytes in blocks: `length` of them, or, when it is None, the chunks of a chunked transfer."""
    if length is not None:
        while length > 0:
            block = stream.read(min(CHUNK, length))
            if not block:
                raise ConnectionResetError("the client went away in the middle of its body")
            length -= len(block)
            yield block
        return
    while True:
        size = int(stream.readline().split(b";")[0], 16)
        if size == 0:
            while stream.readline().strip():
                pass
            return
        yield from blocks(stream, size)
        stream.readline()


def read(parts: Iterator[bytes]) -> Body:
    """The whole body, decoded on the way."""
    text, pending = bytearray(), b""
    uris: list[DataUri] = []
    digest, size = hashlib.sha256(), 0
    current: _Decoder | None = None
    for part in parts:
        digest.update(part)
        size += len(part)
        pending += part
        while True:
            if current is None:
                match = _DATA_URI.search(pending)
                if match is None:
                    # The last bytes may be the beginning of a URI whose end is still to come.
                    keep = max(0, len(pending) - _LONGEST_START)
                    text += pending[:keep]
                    pending = pending[keep:]
                    break
                text += pending[: match.end()] + b"#%d" % len(uris)
                pending = pending[match.end() :]
                current = _Decoder(match.group(1).decode("latin-1"))
            end = pending.find(b'"')
            current.feed(pending if end < 0 else pending[:end])
            pending = b"" if end < 0 else pending[end:]
            if end < 0:
                break
            uris.append(current.finish())
            text += pending[:1]
            pending = pending[1:]
            current = None
    return Body(bytes(text + pending), size, digest.hexdigest(), tuple(uris))


class _Decoder:
    def __init__(self, mime: str) -> None:
        self._mime = mime
        self._digest = hashlib.sha256()
        self._size = self._encoded = 0
        self._rest = b""
        self._error = ""

    def feed(self, encoded: bytes) -> None:
        encoded = self._rest + encoded.replace(b"\\/", b"/")
        whole = len(encoded) - len(encoded) % 4
        self._rest = encoded[whole:]
        self._decode(encoded[:whole])

    def finish(self) -> DataUri:
        self._decode(self._rest)
        return DataUri(self._mime, self._size, self._digest.hexdigest(), self._encoded, self._error)

    def _decode(self, encoded: bytes) -> None:
        self._encoded += len(encoded)
        try:
            decoded = binascii.a2b_base64(encoded)
        except binascii.Error as error:
            self._error = str(error)
            return
        self._digest.update(decoded)
        self._size += len(decoded)

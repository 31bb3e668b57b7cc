"""The JSON body of a request as a stream: local files are encoded from disk while they are sent.

Byte for byte what `json.dumps` of the whole would give, in a few MiB of memory whatever the files' sizes. The exact
length is known before the first byte, so it is sent with Content-Length: the services' servers take no chunked bodies.
pybase64 encodes with the processor's vector instructions; the standard library's encoder would take most of the time.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pybase64

from inference_service.errors import ToolError

# A multiple of 3, so that no piece but the last is padded; its encoded form is 256 KiB.
_PIECE = 192 * 1024


@dataclass(frozen=True)
class InlinedFile:
    """A file that stands in a document for the string `data:<mime>;base64,<its content>`. `size` in bytes."""

    path: Path
    mime: str
    size: int

    @property
    def prefix(self) -> bytes:
        """What comes before the content."""
        return f"data:{self.mime};base64,".encode()

    @property
    def uri_length(self) -> int:
        """The length of the whole data: URI in bytes."""
        return len(self.prefix) + 4 * ((self.size + 2) // 3)


class JsonBody:
    """An iterable of bytes with a length. Each iteration opens the files anew, so that a request can be sent again.

    requests takes the length for Content-Length and hands each piece to the socket as it is; with a `read` method it
    would fetch pieces of 16 KiB instead, which is several times slower.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        """`document` is JSON but for the InlinedFiles in it."""
        self._parts = _split(document)
        self._length = sum(part.uri_length if isinstance(part, InlinedFile) else len(part) for part in self._parts)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, InlinedFile):
                yield part.prefix
                yield from _encoded(part)
            else:
                yield part


def elided(document: Any) -> Any:
    """The document with every data: URI replaced by its type and size, to be shown to a person."""
    if isinstance(document, InlinedFile):
        return f"data:{document.mime};base64,<{document.size} bytes>"
    if isinstance(document, Mapping):
        return {key: elided(value) for key, value in document.items()}
    if isinstance(document, list):
        return [elided(value) for value in document]
    if isinstance(document, str) and document.startswith("data:") and ";base64," in document:
        head, _, data = document.partition(";base64,")
        return f"{head};base64,<{len(data) * 3 // 4 - data.count('=')} bytes>"
    return document


def _split(document: Mapping[str, Any]) -> list[bytes | InlinedFile]:
    """The document's JSON, cut where an inlined file's content belongs."""
    files: list[InlinedFile] = []
    # Nothing that the user wrote can contain it: it is made up here, after the user wrote.
    marker = uuid.uuid4().hex

    def stand_in(value: Any) -> str:
        if not isinstance(value, InlinedFile):
            raise TypeError(f"{type(value).__name__} is not JSON")
        files.append(value)
        return marker

    first, *rest = json.dumps(document, default=stand_in).encode().split(marker.encode())
    parts: list[bytes | InlinedFile] = [first]
    for file, text in zip(files, rest, strict=True):
        parts += (file, text)
    return parts


def _encoded(inlined: InlinedFile) -> Iterator[bytes]:
    left = inlined.size
    try:
        with inlined.path.open("rb", buffering=0) as file:
            piece = memoryview(bytearray(min(_PIECE, max(left, 1))))
            while left:
                count = _fill(file, piece[: min(len(piece), left)])
                if not count:
                    raise _changed(inlined)
                left -= count
                yield pybase64.b64encode(piece[:count])
            if file.read(1):
                raise _changed(inlined)
    except OSError as error:
        # An OSError would be taken for a fault of the connection by the HTTP client that iterates here.
        raise ToolError(
            "file_unreadable",
            f"{inlined.path} could not be read while it was sent: {error.strerror}",
            "check the file and send again",
        ) from error


def _fill(file: Any, piece: memoryview) -> int:
    """Read until `piece` is full or the file ends; how many bytes."""
    # A short read in the middle, encoded by itself, would put padding into the middle of the base64.
    count = 0
    while count < len(piece):
        got = file.readinto(piece[count:])
        if not got:
            break
        count += got
    return count


def _changed(inlined: InlinedFile) -> ToolError:
    return ToolError(
        "file_changed",
        f"{inlined.path} changed while it was sent: it had {inlined.size} bytes before",
        "wait until nothing writes to it, and send again",
    )

"""A container's log as lines: Docker hands it out in pieces that end anywhere, in any encoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# A server that never ends a line must not make us hold its whole output.
LONGEST_LINE_BYTES = 64 * 1024


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream of bytes, without line ends; what is not UTF-8 becomes the replacement character.

    A line longer than LONGEST_LINE_BYTES comes in several parts.
    """
    held = b""
    for chunk in chunks:
        *complete, held = (held + chunk).split(b"\n")
        for line in complete:
            yield from _parts(line)
        while len(held) > LONGEST_LINE_BYTES:
            yield _text(held[:LONGEST_LINE_BYTES])
            held = held[LONGEST_LINE_BYTES:]
    if held:
        yield from _parts(held)


def _parts(line: bytes) -> Iterator[str]:
    for start in range(0, max(len(line), 1), LONGEST_LINE_BYTES):
        yield _text(line[start : start + LONGEST_LINE_BYTES])


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").rstrip("\r")

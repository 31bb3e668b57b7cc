"""Rows on disk before the database has them: one append-only file per process, which survives the process's death.

A record is one line, `<CRC-32 as 8 hex digits> <JSON array>`; the first one of a file names the columns. It is written
into a shared map of the file, which costs no system call; it is there after `kill -9` at any byte, and only a power cut
can take it. A file is locked while its process lives, and deleted when all of its rows are in the database; what a dead
process left is adopted by any other (`leftovers`). Rows are destined for one database, so each has a folder of its own.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import secrets
import stat
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from inference_service import paths
from inference_service.request_log.stored_rows import COLUMNS, Values, arranged

_ENDING = ".jsonl"
_FORMAT = 1
_UNNAMED_SECONDS = 60
_SMALL_SEGMENT = 64 << 10


class JournalFull(OSError):
    """The journal has grown to the size it may have."""


@dataclass
class Segment:
    """One file of ours. `written` and `moved` count its rows, and those that are in the database. `in_file_only`: some
    of them nobody remembers, so that the file has to be read to move them."""

    path: Path
    descriptor: int
    map: mmap.mmap
    size: int
    written: int = 0
    moved: int = 0
    in_file_only: bool = False
    sealed: bool = False


@dataclass(frozen=True)
class Contents:
    """What a file holds: rows, and the lines that are not what was written. The end that a dying process did not finish
    writing is neither."""

    rows: Sequence[Values]
    damaged: Sequence[bytes]


def folder_of(database: str) -> Path:
    """The journal's folder for the database of this (shown) URL, in the user's state directory."""
    name = hashlib.sha256(database.encode()).hexdigest()[:16]
    return paths.state_directory() / "gateway-journal" / name


class Journal:
    """The journal of this process. Nothing is made before the first row; not for several threads at once, but for
    `leftovers` and `set_aside`."""

    def __init__(self, folder: Path, segment_bytes: int = 4 << 20, most_bytes: int = 1 << 30) -> None:
        self.folder = folder
        self.bytes = 0
        """Of the files that this process has written and that are not moved yet."""
        self._segment_bytes = segment_bytes
        self._most_bytes = most_bytes
        self._current: Segment | None = None
        self._sealed: list[Segment] = []
        self._mine: set[str] = set()

    def append(self, values: Values) -> Segment:
        """Write one row; when this returns it survives the process. The segment it is in.

        Raises:
            JournalFull: there are too many bytes of rows that did not reach the database.
            OSError: it cannot be written (a full disk); nothing of it is.
            TypeError: a value is none that JSON has.
        """
        return self._write(_record(orjson.dumps(values)))

    def seal(self) -> None:
        """Begin another file with the next row."""
        if self._current is not None:
            self._current.sealed = True
            self._current.map.close()
            with suppress(OSError):
                os.ftruncate(self._current.descriptor, self._current.size)
            self._sealed.append(self._current)
            self._current = None

    def release(self) -> None:
        """Delete the sealed files whose rows are all in the database."""
        for segment in [each for each in self._sealed if each.moved >= each.written and not each.in_file_only]:
            self.remove(segment)

    def to_be_read(self) -> list[Segment]:
        """The sealed files with rows that only the file has. The current one is sealed if it is such a one."""
        if self._current is not None and self._current.in_file_only:
            self.seal()
        return [segment for segment in self._sealed if segment.in_file_only]

    def remove(self, segment: Segment) -> None:
        """Delete a sealed file: the database has all of it."""
        self._sealed.remove(segment)
        self.bytes -= segment.size
        with suppress(OSError):
            segment.path.unlink()
        self._mine.discard(segment.path.name)
        os.close(segment.descriptor)

    def close(self) -> None:
        """Delete what the database has, and leave the rest to be adopted."""
        self.seal()
        self.release()
        for segment in self._sealed:
            os.close(segment.descriptor)
        self._sealed.clear()
        self._mine.clear()
        self.bytes = 0

    @contextmanager
    def leftovers(self) -> Iterator[Iterator[Path]]:
        """The files of processes that are gone, each locked until the next is asked for or the block ends."""
        adopted = self._adopted()
        try:
            yield adopted
        finally:
            adopted.close()

    def set_aside(self, name: str, lines: Sequence[bytes]) -> Path:
        """Keep lines that cannot be stored in a file of their own, which nobody reads but people; that file."""
        path = self.folder / f"damaged-{name}"
        _make_folder(self.folder)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"".join(line + b"\n" for line in lines))
        finally:
            os.close(descriptor)
        return path

    def _write(self, record: bytes) -> Segment:
        segment = self._current
        length = len(record)
        if segment is None or segment.size + length > len(segment.map):
            self.seal()
            segment = self._opened(length)
        start = segment.size
        segment.map[start : start + length] = record
        segment.size += length
        segment.written += 1
        self.bytes += length
        return segment

    def _opened(self, room: int) -> Segment:
        """A new file with room for so many bytes at least."""
        if sum(_size(path) for path in self.folder.glob(f"*{_ENDING}")) >= self._most_bytes:
            raise JournalFull(errno.ENOSPC, f"the journal has reached {self._most_bytes:,} bytes", str(self.folder))
        _make_folder(self.folder)
        name = f"{os.getpid()}-{secrets.token_hex(8)}{_ENDING}"
        # It gets its name when it is locked: another process that looked before would take it for a dead one's.
        unnamed = self.folder / f".{name}"
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = _record(orjson.dumps({"format": _FORMAT, "columns": COLUMNS}))
            size = _allocated(descriptor, len(header) + room, self._segment_bytes)
            mapped = mmap.mmap(descriptor, size)
            mapped[: len(header)] = header
            self._mine.add(name)
            unnamed.rename(self.folder / name)
        except BaseException:
            self._mine.discard(name)
            with suppress(OSError):
                unnamed.unlink()
            os.close(descriptor)
            raise
        self.bytes += len(header)
        self._current = Segment(self.folder / name, descriptor, mapped, len(header))
        return self._current

    def _adopted(self) -> Generator[Path, None, None]:
        for path in sorted(self.folder.glob(f"*{_ENDING}")) if self.folder.is_dir() else ():
            if path.name in self._mine or path.name.startswith("damaged-"):
                continue
            if path.name.startswith("."):
                _remove_if_old(path)
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if _is_ours(descriptor, path):
                    yield path
            finally:
                os.close(descriptor)


def read(path: Path) -> Contents:
    """The rows of a file.

    Raises:
        OSError: it cannot be read.
    """
    # What was allocated and not written yet is zeros; what follows the last line end was not finished.
    lines = path.read_bytes().rstrip(b"\0").split(b"\n")
    del lines[-1]
    columns: Sequence[str] = COLUMNS
    rows: list[Values] = []
    damaged: list[bytes] = []
    for number, line in enumerate(lines):
        try:
            content = _content(line)
            if number == 0:
                columns = content["columns"]
            else:
                rows.append(arranged(columns, content))
        except (ValueError, TypeError, KeyError):
            damaged.append(line)
    return Contents(rows, damaged)


def _allocated(descriptor: int, least: int, most: int) -> int:
    """Give the file `most` bytes on the disk, or what a disk that is nearly full has room for; how many it has.

    Raises:
        OSError: there is no room for `least`.
    """
    for size in (most, min(most, _SMALL_SEGMENT)):
        if size >= least:
            with suppress(OSError):
                _allocate(descriptor, size)
                return size
    _allocate(descriptor, least)
    return least


def _allocate(descriptor: int, size: int) -> None:
    """Give the file its bytes on the disk now: a map without them kills who writes to it when the disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif os.pwrite(descriptor, bytes(size), 0) != size:
        raise OSError(errno.ENOSPC, "No space left on device")


def _record(json: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(json), json)


def _content(line: bytes) -> Any:
    checksum, json = line[:8], line[9:]
    if int(checksum, 16) != zlib.crc32(json):
        raise ValueError("the checksum is another")
    return orjson.loads(json)


def _is_ours(descriptor: int, path: Path) -> bool:
    """Whether a file is one of this user's whose process is gone; it is locked from then on."""
    opened = os.fstat(descriptor)
    if not stat.S_ISREG(opened.st_mode) or opened.st_uid != os.geteuid():
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have moved and deleted it between our looking and our locking.
        return os.path.samestat(opened, path.stat())
    except OSError:
        return False


def _remove_if_old(path: Path) -> None:
    """Remove a file without a name, and so without rows, whose maker died before it had one."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _UNNAMED_SECONDS:
            path.unlink()


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # Another process has moved and deleted it.
        return 0

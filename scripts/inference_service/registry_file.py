"""The registry's file: one JSON object that several processes change, and that no crash may damage.

Whoever changes it holds a lock on a file beside it, writes a new file, and renames it over the old one. So a reader,
who needs no lock, and whoever comes after a kill, a power cut or a full disk find the old file or the new one, whole.
The file lies in a folder that everybody may write to (/tmp, seed 4.3), so one that somebody else made or may change is
refused. What is mounted read-only (a ConfigMap, a volume of a container) is from whoever set up the machine: it is
read, and never written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from inference_service.errors import ToolError

State = dict[str, Any]

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
# A program that rewrites the file in place, as the seed's snippets do, shows half of it for a moment.
_HALF_WRITTEN_SECONDS = 0.25
_LOOK_AGAIN_SECONDS = 0.02
_OTHER_FILE = "or keep the registry elsewhere: export TAO_INF_MS_STATE_FILE=$HOME/tao-inf-ms-state.json"
_REBUILD = "rebuild it from what runs: registry.py reconcile"


class RegistryFile:
    """The registry's file at `path`, its lock `<path>.lock` and its next version `<path>.tmp`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(path.name + ".lock")
        self._next = path.with_name(path.name + ".tmp")

    def load(self) -> State:
        """The file's content, {} where there is no file.

        Raises:
            ToolError: it is not ours alone, or cannot be read; or it was no JSON object, and was moved aside. A file of
                no bytes is no JSON object either: it is what a write in place leaves that was cut short.
        """
        try:
            return self._parsed()
        except ValueError:
            with self.locked():
                return self.load_locked()

    def load_locked(self) -> State:
        """The same for whoever holds the lock."""
        deadline = time.monotonic() + _HALF_WRITTEN_SECONDS
        while True:
            try:
                return self._parsed()
            except ValueError as error:
                if time.monotonic() > deadline:
                    raise self._moved_aside(error) from error
                time.sleep(_LOOK_AGAIN_SECONDS)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock: one holder at a time, among processes and threads. The kernel frees it when the holder dies.

        Raises:
            ToolError: the folder cannot be written, or the lock's file is not ours alone.
        """
        with self._explained():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._acquired()
        try:
            yield
        finally:
            os.close(lock)

    def save(self, state: Mapping[str, Any]) -> None:
        """Make `state` the file's content, for whoever holds the lock.

        Raises:
            ToolError: the folder or the disk refuses; the file is as it was.
        """
        content = _encoded(state)
        with self._explained():
            # Only the lock's holder uses this name, so whatever has it was left by one that was killed.
            self._next.unlink(missing_ok=True)
            try:
                _write_new(self._next, content)
                self._next.replace(self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._next.unlink()
                raise
        _flush_folder(self.path.parent)

    def _parsed(self) -> State:
        content = self._bytes()
        if content is None:
            return {}
        try:
            state = json.loads(content)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(state, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - one kind of error for all that does not parse
        return state

    def _bytes(self) -> bytes | None:
        with self._explained():
            try:
                provided = _mounted_read_only(self.path.parent)
                # Without O_NONBLOCK, opening a FIFO that somebody put here would wait for ever. A ConfigMap's files are
                # symbolic links beside what they lead to.
                no_follow = 0 if provided else os.O_NOFOLLOW
                handle = os.open(self.path, os.O_RDONLY | no_follow | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                if not provided:
                    _require_ours(os.fstat(handle), self.path)
                with os.fdopen(handle, "rb", closefd=False) as file:
                    return file.read()
            finally:
                os.close(handle)

    def _acquired(self) -> int:
        while True:
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            try:
                held = os.fstat(lock)
                _require_ours(held, self._lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Something that tidies /tmp may have removed the file while we waited; others lock a new one now.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(held, os.lstat(self._lock)):
                        return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _moved_aside(self, reason: ValueError) -> ToolError:
        moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        aside = self.path.with_name(f"{self.path.name}.corrupt-{moment}")
        number = 1
        while os.path.lexists(aside):
            number += 1
            aside = self.path.with_name(f"{self.path.name}.corrupt-{moment}-{number}")
        with self._explained():
            self.path.rename(aside)
        return ToolError(
            "registry_corrupt",
            f"the registry {self.path} could not be read as JSON ({reason}); it was moved to {aside}",
            _REBUILD,
            file=str(self.path),
            moved_to=str(aside),
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _problem(error, self.path) from error


def _encoded(state: Mapping[str, Any]) -> bytes:
    # One service a line: readable, and several times faster than json's own indentation.
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in state.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _write_new(file: Path, content: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    # The new file is in place; only a power cut could still bring back the old one, and not every filesystem can tell.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mounted_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _require_ours(status: os.stat_result, file: Path) -> None:
    problem = _not_ours(status, file)
    if problem is not None:
        raise problem


def _not_ours(status: os.stat_result, file: Path) -> ToolError | None:
    if not stat.S_ISREG(status.st_mode):
        return ToolError(
            "registry_not_a_file", f"{file} is not a regular file", f"remove it, {_OTHER_FILE}", file=str(file)
        )
    if status.st_uid != os.geteuid():
        return ToolError(
            "registry_foreign_owner",
            f"{file} belongs to the user with id {status.st_uid}, and this is the one with id {os.geteuid()}",
            f"run this as that user, {_OTHER_FILE}",
            file=str(file),
        )
    if status.st_mode & _OTHERS_MAY_WRITE:
        return ToolError(
            "registry_writable_by_others",
            f"others may write {file} (mode {stat.S_IMODE(status.st_mode):04o})",
            f"look at what is in it, then: chmod 600 {file}",
            file=str(file),
        )
    return None


def _problem(error: OSError, registry: Path) -> ToolError:
    file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else registry
    if error.errno == errno.ELOOP:
        return ToolError(
            "registry_is_symlink", f"{file} is a symbolic link", f"remove it, {_OTHER_FILE}", file=str(file)
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ToolError(
            "registry_disk_full",
            f"no space to write {registry} ({error.strerror}); it is as it was",
            f"make space: df -h {registry.parent}",
            file=str(registry),
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _denied(error, file, registry)
    if file == registry.parent or error.errno == errno.ENOTDIR:
        return ToolError(
            "registry_folder_unusable",
            f"{registry.parent}, where {registry} should be, cannot be used: {error.strerror}",
            f"make {registry.parent} a folder, {_OTHER_FILE}",
            file=str(registry),
        )
    return ToolError("registry_unusable", f"cannot use {file}: {error.strerror}", _OTHER_FILE, file=str(file))


def _denied(error: OSError, file: Path, registry: Path) -> ToolError:
    # A file of somebody else's in /tmp refuses us too; its owner is the better explanation.
    with contextlib.suppress(OSError):
        problem = _not_ours(file.lstat(), file) if file != registry.parent else None
        if problem is not None:
            return problem
    return ToolError(
        "registry_not_writable",
        f"{file} cannot be written in {registry.parent} ({error.strerror}); the registry is as it was",
        f"make {registry.parent} writable for this user, {_OTHER_FILE}",
        file=str(registry),
    )

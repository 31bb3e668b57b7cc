"""Opening the request log's SQLite file: private to its user, shared by many processes, never through a symlink."""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import time
from pathlib import Path

from inference_service.sql.database import DatabaseUnusable
from inference_service.sql.migrations import migrate

BUSY_SECONDS = 5.0


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the log at `path`, made if need be (file 0600, folder 0700), its schema up to date.

    Raises:
        OSError, sqlite3.Error: it cannot be opened or written; `unusable` says what to do about either.
    """
    _create_private(path)
    # One thread at a time uses a connection, not always the same one.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_write_ahead_log(connection)
        # With a write-ahead log this survives the death of any process; only a power cut can take the last few rows.
        connection.execute("PRAGMA synchronous = NORMAL")
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def empty() -> sqlite3.Connection:
    """A log without rows that leaves no file anywhere."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate(connection)
    return connection


def unusable(path: Path, error: Exception) -> DatabaseUnusable:
    """The error that says why the log cannot be used and what mends it. The file itself is never moved or overwritten
    here: another process may be writing to it."""
    return DatabaseUnusable(
        "request_log_unusable", f"the request log {path} cannot be used: {error}", _fix(path, error)
    )


def _fix(path: Path, error: Exception) -> str:
    elsewhere = "export TAO_INF_REQUEST_LOG=/path/to/a/file/you/can/write"
    text = str(error)
    if "not a database" in text or "malformed" in text:
        aside = shlex.quote(str(path.parent / f"corrupt-{path.name}"))
        return f"mkdir -p {aside} && mv {shlex.quote(str(path))}* {aside}/   # the next request starts a new log"
    if "disk is full" in text or "No space left" in text:
        return f"free some space on the disk of {path.parent}, or {elsewhere}"
    if "locked" in text:
        return f"end the program that keeps it locked (fuser {shlex.quote(str(path))} names it)"
    return elsewhere


def _create_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Only a file that we make ourselves is opened here: closing a descriptor of a database that this process has
        # open elsewhere would drop its POSIX locks (sqlite.org/howtocorrupt.html, 2.2).
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise OSError("it is a symbolic link, which could lead to somebody else's file") from None
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a regular file") from None
        if found.st_uid != os.geteuid():
            raise OSError(f"it belongs to another user (uid {found.st_uid})") from None


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # Changing the journal mode does not honour the busy timeout: two processes that make the log at once collide here.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            # A file system that cannot share memory answers with another mode, which is slower but as safe.
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)

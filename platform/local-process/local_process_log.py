"""A service's folder on this machine, and the log in it: private to the user, read like `tail`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from inference_service import paths
from inference_service.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LOOK_EVERY_SECONDS = 0.2


def folder(job_id: str) -> Path:
    """Where this service's files are.

    Raises:
        BadInput: the job_id, which may come from a file, is no plain name and could lead elsewhere.
    """
    if not _NAME.fullmatch(job_id):
        raise BadInput(
            "bad_job_id", f"the job_id {job_id!r} is not a plain name", "use the job_id that start_service.py printed"
        )
    return paths.state_directory() / "processes" / job_id


def file(job_id: str) -> Path:
    """The file of its log."""
    return folder(job_id) / "log"


def create(job_id: str) -> int:
    """Make the folder and the log; a descriptor of the log for the child to write to."""
    folder(job_id).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder(job_id).mkdir(mode=0o700)
    return os.open(file(job_id), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)


def remove(job_id: str) -> None:
    """Remove the folder; that there is none is fine."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder(job_id))


def read(job_id: str, tail: int | None, follow: bool, ended: Callable[[], bool]) -> Iterator[str]:
    """The lines of the log, the last `tail` of them (None: all); with `follow` on and on, until `ended`.

    Raises:
        FileNotFoundError: there is no log.
    """
    with file(job_id).open(encoding="utf-8", errors="replace", newline="\n") as stream:
        if tail is None:
            yield from (line.rstrip("\r\n") for line in stream)
        else:
            yield from (line.rstrip("\r\n") for line in deque(stream, maxlen=tail))
        begun = ""
        while follow:
            # Asked before the last read, so that what it wrote before it ended is not missed.
            last = ended()
            while line := stream.readline():
                begun += line
                if begun.endswith("\n"):
                    yield begun.rstrip("\r\n")
                    begun = ""
            if last:
                break
            time.sleep(_LOOK_EVERY_SECONDS)
        if begun:
            yield begun

"""The processes of one service, found by the marks in their environment rather than by any pid we noted down.

A pid in a file can be somebody else's by now, and a service may have started children of its own. Every process that
descends from a service inherits its marks, and no stranger has them: so these can be found when the registry is lost,
and ended without ending anybody else's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_service import contracts

if TYPE_CHECKING:
    import psutil


def mark(label: str) -> str:
    """The environment variable that carries this label: TAO_JOB_ID for tao-job-id."""
    return label.upper().replace("-", "_")


JOB_ID = mark(contracts.JOB_ID_LABEL)
NETWORK_ARCH = mark(contracts.NETWORK_ARCH_LABEL)
MODEL_PATH = mark(contracts.MODEL_PATH_LABEL)
REGISTRY = mark(contracts.REGISTRY_LABEL)
STOP_AFTER = mark(contracts.STOP_AFTER_LABEL)
HOST_PORT = "TAO_HOST_PORT"


@dataclass(frozen=True)
class Marked:
    """A running process of this user that carries a service's marks, and its environment."""

    process: psutil.Process
    environ: Mapping[str, str]

    @property
    def leads(self) -> bool:
        """Whether it is the one that was started, and leads the session of the others."""
        try:
            return os.getsid(self.process.pid) == self.process.pid
        except ProcessLookupError:
            return False


def marked() -> Iterator[Marked]:
    """All processes of this user that carry a service's marks, zombies aside."""
    import psutil

    me = os.geteuid()
    for process in psutil.process_iter():
        try:
            if process.uids().effective != me:
                continue
            environ = process.environ()
            if environ.get(JOB_ID) and environ.get(REGISTRY):
                yield Marked(process, environ)
        except (psutil.Error, OSError):
            continue  # It ended meanwhile, or its environment is not ours to read.


def of_job(job_id: str) -> list[psutil.Process]:
    """The processes of that service: those with its marks, and what else runs in the sessions of these."""
    import psutil

    found = {item.process.pid: item.process for item in marked() if item.environ[JOB_ID] == job_id}
    if not found:
        return []
    # A session's number stays taken while any process is in it, so this meets no stranger.
    sessions = {session for session in map(_session, found) if session in found}
    for process in psutil.process_iter():
        if process.pid not in found and _session(process.pid) in sessions:
            found[process.pid] = process
    return list(found.values())


def end(job_id: str, patience_seconds: float) -> list[int]:
    """End every process of that service: TERM, after `patience_seconds` KILL. The pids that run on, normally none."""
    import psutil

    _signal_all(job_id, "terminate")
    psutil.wait_procs(of_job(job_id), timeout=patience_seconds)
    # What was started while we waited is killed too, until a look finds nothing.
    for _ in range(5):
        left = _signal_all(job_id, "kill")
        if not left:
            return []
        psutil.wait_procs(left, timeout=2)
    return [process.pid for process in of_job(job_id)]


def _signal_all(job_id: str, how: str) -> list[psutil.Process]:
    import psutil

    processes = of_job(job_id)
    for process in processes:
        try:
            getattr(process, how)()  # psutil compares the start time first: not even a pid reused just now is met.
        except psutil.Error:
            continue
    return processes


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None

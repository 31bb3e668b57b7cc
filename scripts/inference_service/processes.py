"""Whether a process that was noted down is still the one: a pid alone is not enough, pids are used again.

A process is named by its pid and the moment it started. The moment is compared with a tolerance, because the kernel
derives it from the boot time, which moves a little whenever the clock is set.
"""

from __future__ import annotations

import os
from typing import Any

_TOLERANCE_SECONDS = 2.0


def started_at(pid: int) -> float | None:
    """When the process with this pid started (seconds, Unix time); None when none runs, or only its zombie is left."""
    import psutil

    try:
        process = psutil.Process(pid)
        created = float(process.create_time())
        return None if process.status() == psutil.STATUS_ZOMBIE else created
    except (psutil.Error, ValueError):
        return None


def is_same(pid: int, started: float) -> bool:
    """Whether the process that `started_at` described is still running, and not another one that got its pid."""
    now = started_at(pid)
    return now is not None and abs(now - started) <= _TOLERANCE_SECONDS


def this_process() -> dict[str, Any]:
    """This process as JSON, `{"pid", "started"}`, for another process to ask `is_same` about."""
    pid = os.getpid()
    return {"pid": pid, "started": started_at(pid)}

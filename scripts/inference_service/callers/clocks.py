"""The clocks that leases go by: a wall clock for windows, and ticks that nobody sets for how long a lease lives."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inference_service.sql import Cursor

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SERVER = "server"


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# A suspended machine's leases go on ageing, so its clock has to go on too where there is one that does.
ticks: Callable[[], float] = _boot_time if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic


@dataclass(frozen=True)
class Now:
    """One moment as the database's users agree on it: whose clock it is, its ticks, and the wall clock (seconds)."""

    clock: str
    ticks: float
    wall: float


def now(cursor: Cursor, dialect: str, wall: Callable[[], float], ticks: Callable[[], float]) -> Now:
    """The moment by the clock that all processes of a database share: this machine's, or the PostgreSQL server's."""
    if dialect == "sqlite":
        return Now(_boot(), ticks(), wall())
    cursor.execute("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)")
    (seconds,) = next(iter(cursor))
    return Now(_SERVER, seconds, seconds)


@functools.cache
def _boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "this machine"

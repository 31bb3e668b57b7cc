"""Processor sharing among the requests of several processes of this machine: the meter is a file that all of them map.

Each event takes the file's lock, reads the state, does what gpu_sharing.py does, and writes the state back: a few
microseconds. A process that is killed at any moment harms nothing: the lock goes with it, the state is written beside
the one that holds and then made the one that holds by a single byte, and how many requests each process has under way
stands apart, so that those of a dead one are taken out by the living. What a dead one's requests would have been
charged is idle once nobody else is under way.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from inference_service import processes
from inference_service.gpu_sharing import ProcessorSharing, Shares

_PROCESSES = 64
_LOOK_FOR_DEAD_NS = 10_000_000_000

# The first byte says which of the two states holds (1 or 2; 0: none was ever written), the second how many of the
# places for processes were ever taken. Then the states, then for each place how many requests are under way, and whose
# place it is (pid, when that process was started; pid 0: nobody's).
_STATE = struct.Struct("=3Q8Q")  # Three amounts that are small, and four of 128 bits.
_LOW = (1 << 64) - 1
_STATES_AT = (0, 16, 16 + _STATE.size)
_COUNTS_AT = 16 + 2 * _STATE.size
_OWNERS_AT = _COUNTS_AT + 4 * _PROCESSES
_OWNER = struct.Struct("=qd")
_NOBODY = (0, 0.0)
_SIZE = _OWNERS_AT + _OWNER.size * _PROCESSES


class SharedProcessorSharing(ProcessorSharing):
    """The sharing of a service's GPUs that is in a file. Several of these may be open at once, in a process as well.

    It was started when the file was first made, and goes on from where it was when it is opened again.
    """

    def __init__(self, file: Path, usd_per_hour: Sequence[tuple[int, Decimal]], now_ns: int) -> None:
        """Open the file, or make it: then the meter starts at `now_ns`. Each process has to open it by itself (the lock
        does not hold between those that got it by a fork), with prices that ought to be the same.

        Raises:
            OSError: it cannot be made, or too many processes have it open.
            ValueError: a price has more than nine decimals.
        """
        self._looked_for_dead = now_ns
        super().__init__(usd_per_hour, now_ns)
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            # With its blocks: writing to a map without them kills the process when the disk is full.
            os.posix_fallocate(self._fd, 0, _SIZE)
            self._map = mmap.mmap(self._fd, _SIZE)
            self._counts = memoryview(self._map)[_COUNTS_AT:_OWNERS_AT].cast("I")
            if self._map[0]:
                self._read()
                # Those that held when this meter was last used, for the time since.
                self._set_prices(usd_per_hour)
            self._remove_dead()
            self._place = self._own_place(file)
            self._write()
        except BaseException:
            os.close(self._fd)
            raise
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        self._counts.release()
        self._map.close()
        os.close(self._fd)

    def begin(self, now_ns: int) -> int | None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._read()
            if now_ns - self._looked_for_dead > _LOOK_FOR_DEAD_NS:
                self._looked_for_dead = now_ns
                self._remove_dead()
            begun = super().begin(now_ns)
            if begun is not None:
                self._counts[self._place] += 1
            self._write()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return begun

    def end(self, begun: int, now_ns: int) -> Decimal:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._read()
            if self._counts[self._place]:
                self._counts[self._place] -= 1
            else:
                # Somebody who could not see this process (from another container) took its requests out.
                self._under_way += 1
            charge = super().end(begun, now_ns)
            self._write()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return charge

    def change_prices(self, usd_per_hour: Sequence[tuple[int, Decimal]], now_ns: int) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._read()
            super().change_prices(usd_per_hour, now_ns)
            self._write()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def shares(self, now_ns: int) -> Shares:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._read()
            self._remove_dead()
            shares = super().shares(now_ns)
            self._write()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return shares

    def _read(self) -> None:
        state = _STATE.unpack_from(self._map, _STATES_AT[self._map[0]])
        self._now, self._undivided, self._unrounded = state[:3]
        self._cost = state[3] << 64 | state[4]
        self._idle = state[5] << 64 | state[6]
        self._charged_femto = state[7] << 64 | state[8]
        self._per_request = state[9] << 64 | state[10]
        self._under_way = sum(self._counts[: self._map[1]])
        # Another process may have gone past a change of the price.
        self._pass_changes(self._now)

    def _write(self) -> None:
        cost, idle, charged, per_request = self._cost, self._idle, self._charged_femto, self._per_request
        other = 2 if self._map[0] == 1 else 1
        _STATE.pack_into(
            self._map,
            _STATES_AT[other],
            self._now,
            self._undivided,
            self._unrounded,
            cost >> 64,
            cost & _LOW,
            idle >> 64,
            idle & _LOW,
            charged >> 64,
            charged & _LOW,
            per_request >> 64,
            per_request & _LOW,
        )
        self._map[0] = other

    def _own_place(self, file: Path) -> int:
        """Where this process counts; the same for all that it opens."""
        pid, started = os.getpid(), processes.started_at(os.getpid()) or 0.0
        owners = [self._owner(place) for place in range(self._map[1])]
        if (pid, started) in owners:
            return owners.index((pid, started))
        free = owners.index(_NOBODY) if _NOBODY in owners else len(owners)
        if free == _PROCESSES:
            raise OSError(errno.EUSERS, "more processes share a GPU's meter than it has places for", str(file))
        _OWNER.pack_into(self._map, _OWNERS_AT + free * _OWNER.size, pid, started)
        self._map[1] = max(self._map[1], free + 1)
        return free

    def _remove_dead(self) -> None:
        for place in range(self._map[1]):
            pid, started = self._owner(place)
            if pid and not processes.is_same(pid, started):
                self._counts[place] = 0
                _OWNER.pack_into(self._map, _OWNERS_AT + place * _OWNER.size, *_NOBODY)
        self._under_way = sum(self._counts)
        if not self._under_way:
            self._settle()

    def _owner(self, place: int) -> tuple[int, float]:
        pid, started = _OWNER.unpack_from(self._map, _OWNERS_AT + place * _OWNER.size)
        return pid, started

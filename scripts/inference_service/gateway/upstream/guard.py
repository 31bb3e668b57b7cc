"""What stands before an upstream: as many requests at a time as it bears, a short queue with a deadline, and a breaker.

The queue is first come, first served, and a request leaves it at its deadline: one that waits longer than its caller is
willing to wait only makes the others late. The breaker opens when an upstream fails so often that asking it again costs
callers time for nothing; after a pause, one request at a time is let through to see whether it is back, and each pause
after a failed probe is twice as long. All of it belongs to one event loop and takes no locks; a request that finds
room costs a few comparisons.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BreakerSettings:
    """When the breaker opens: after `consecutive` failures, or when of at least `least_requests` within the last
    `window_seconds` the share `failure_share` failed. It stays open for `open_seconds`, doubled with each failed
    probe up to `longest_open_seconds`.
    """

    consecutive: int = 8
    failure_share: float = 0.5
    least_requests: int = 32
    window_seconds: float = 10.0
    open_seconds: float = 1.0
    longest_open_seconds: float = 30.0


class Refused(Exception):
    """The request was not let through. `retry_after`: seconds after which it is worth asking again."""

    error_type = "overloaded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class Overloaded(Refused):
    """All places are taken, and so is the queue, or its deadline has passed."""


class CircuitOpen(Refused):
    """The upstream has failed too often lately."""

    error_type = "circuit_open"


class Guard:
    """At most `max_concurrency` requests at a time; `queue_limit` more wait, at most `queue_seconds` each.

    A request is let in by `try_enter()` or, where that is False, by `await enter()`, and must `leave(ok)` exactly once.
    `ok` says how the upstream did: False for what it is to blame for (unreachable, reset, time-out, 5xx, 529), True for
    every other answer, None when nothing was learned (the client went away, the upstream was not asked).

    While a probe is under way, an answer to a request that was let in before the breaker opened counts as the probe's:
    it says as much about the upstream.
    """

    __slots__ = (
        "_clock",
        "_failed",
        "_in_row",
        "_open_for",
        "_open_until",
        "_previous",
        "_probing",
        "_queue",
        "_settings",
        "_succeeded",
        "_window_began",
        "active",
        "max_concurrency",
        "name",
        "queue_limit",
        "queue_seconds",
    )

    def __init__(
        self,
        max_concurrency: int,
        queue_limit: int,
        queue_seconds: float,
        breaker: BreakerSettings | None = None,
        *,
        name: str = "the upstream",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_concurrency < 1 or queue_limit < 0 or queue_seconds < 0:
            raise ValueError(f"not limits: {max_concurrency} at a time, {queue_limit} waiting for {queue_seconds} s")
        self.name = name
        self.max_concurrency = max_concurrency
        self.queue_limit = queue_limit
        self.queue_seconds = queue_seconds
        self.active = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._settings = breaker or BreakerSettings()
        self._clock = clock
        self._open_for = 0.0  # seconds of the present pause; 0.0 while closed
        self._open_until = 0.0
        self._probing = False
        self._in_row = 0
        self._succeeded = self._failed = 0
        self._previous = (0, 0)  # succeeded, failed in the window before this one
        self._window_began = 0.0

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def state(self) -> str:
        """The breaker: "closed", "open" or "half_open" (a probe is due or under way)."""
        if not self._open_for:
            return "closed"
        return "half_open" if self._probing or self._clock() >= self._open_until else "open"

    def try_enter(self) -> bool:
        """Take a place if one is free and nobody waits. Raises CircuitOpen."""
        if self._open_for:
            return self._try_probe()
        if self.active >= self.max_concurrency or self._queue:
            return False
        self.active += 1
        return True

    async def enter(self) -> None:
        """Take a place, waiting for one. Raises Overloaded, CircuitOpen."""
        if self.try_enter():
            return
        if len(self._queue) >= self.queue_limit:
            raise Overloaded(
                f"{self.name} has {self.active} requests under way and {len(self._queue)} waiting", self._retry_after()
            )
        loop = asyncio.get_running_loop()
        place: asyncio.Future[None] = loop.create_future()
        self._queue.append(place)
        timer = loop.call_later(self.queue_seconds, self._too_late, place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.done() or place.cancelled():
                self._forget(place)
            elif place.exception() is None:
                self._vacate()  # it had just been given a place
            raise
        finally:
            timer.cancel()

    def leave(self, ok: bool | None) -> None:
        """Give the place back, and say how the upstream did."""
        if self._probing:
            self._probed(ok)
        elif not self._open_for and ok is not None:
            self._count(ok)
        self._vacate()

    # ---- places

    def _vacate(self) -> None:
        self.active -= 1
        if self._open_for:
            return  # those who waited have been told; a probe is the next
        while self._queue and self.active < self.max_concurrency:
            place = self._queue.popleft()
            if not place.done():
                self.active += 1
                place.set_result(None)

    def _too_late(self, place: asyncio.Future[None]) -> None:
        if not place.done():
            self._forget(place)
            place.set_exception(
                Overloaded(f"no place at {self.name} became free within {self.queue_seconds:g} s", self._retry_after())
            )

    def _forget(self, place: asyncio.Future[None]) -> None:
        if place in self._queue:
            self._queue.remove(place)

    def _retry_after(self) -> float:
        return max(1.0, math.ceil(self.queue_seconds / 2))

    # ---- breaker

    def _try_probe(self) -> bool:
        now = self._clock()
        if self._probing or now < self._open_until:
            raise self._circuit_open(now)
        if self.active >= self.max_concurrency:
            raise self._circuit_open(now)
        self._probing = True
        self.active += 1
        return True

    def _circuit_open(self, now: float) -> CircuitOpen:
        return CircuitOpen(
            f"{self.name} has failed too often; it is not asked for now", max(1.0, math.ceil(self._open_until - now))
        )

    def _probed(self, ok: bool | None) -> None:
        self._probing = False
        if ok:
            self._open_for = 0.0
            self._in_row = self._succeeded = self._failed = 0
            self._previous = (0, 0)
        elif ok is not None:
            self._open(min(self._open_for * 2, self._settings.longest_open_seconds))

    def _count(self, ok: bool) -> None:
        if ok:
            self._in_row = 0
            self._succeeded += 1
            return
        self._in_row += 1
        self._failed += 1
        settings = self._settings
        now = self._clock()
        since = now - self._window_began
        if since >= settings.window_seconds:
            self._previous = (self._succeeded, self._failed) if since < 2 * settings.window_seconds else (0, 0)
            self._succeeded, self._failed, self._window_began = 0, 1, now
        succeeded, failed = self._previous[0] + self._succeeded, self._previous[1] + self._failed
        enough = succeeded + failed >= settings.least_requests
        if self._in_row >= settings.consecutive or (enough and failed >= settings.failure_share * (succeeded + failed)):
            self._open(settings.open_seconds)

    def _open(self, seconds: float) -> None:
        now = self._clock()
        self._open_for = seconds
        self._open_until = now + seconds
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_exception(self._circuit_open(now))

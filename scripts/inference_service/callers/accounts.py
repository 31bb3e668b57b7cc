"""The callers of one gateway process: who they are, and whether a request of theirs is within its limits.

    accounts = Accounts(sql.open(url), holder=gateway_id)
    await accounts.start()
    caller = accounts.authenticate(key) or await accounts.find(key)
    admission = accounts.try_admit(caller, tokens, nano_usd, at) or await accounts.admit(caller, tokens, nano_usd, at)
    try: …
    finally: admission.settle(tokens_used, nano_usd_spent)

Requests are answered from memory; what is in memory follows the database within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from inference_service.callers import allowances, clocks, directory, keys
from inference_service.callers.admissions import Admissions
from inference_service.callers.caller import Caller
from inference_service.callers.pools import Admission
from inference_service.callers.refusals import LimitExceeded, LimitsUnavailable
from inference_service.errors import ToolError
from inference_service.sql import Database

log = logging.getLogger("gateway")

__all__ = ["Accounts", "Admission", "LimitExceeded", "LimitsUnavailable"]

# With the time that a look takes, changes are seen within a second.
_EVERY = 0.75
# However many unknown keys are tried, the database is asked this often (seconds between two questions).
_BETWEEN_LOADS = 0.25
_FORGET_EVERY = 600.0
_ANSWER_WITHIN = 3.0


class Accounts:
    """`holder` names this process among all that ever were: it is `gateway` in its rows, by which they are settled."""

    def __init__(
        self,
        database: Database,
        holder: str,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = clocks.ticks,
    ) -> None:
        self._database = database
        self._clock = clock
        self._ticks = ticks
        self._directory = directory.Directory(clock)
        self._lease_thread = ThreadPoolExecutor(1, "caller-limits")
        self._directory_thread = ThreadPoolExecutor(1, "callers")
        self._admissions = Admissions(database, holder, self._in_lease_thread, clock, ticks)
        self._loading = asyncio.Lock()
        self._next_load: asyncio.Task[bool] | None = None
        self._loaded_at = float("-inf")
        self._load_trouble: str | None = None
        self._following: asyncio.Task[None] | None = None
        self._forgot_at = ticks()
        # The hot path goes straight to where it is done.
        self.authenticate = self._directory.authenticate
        self.try_admit = self._admissions.try_admit
        self.admit = self._admissions.admit

    @property
    def trouble(self) -> str | None:
        """Why the database did not answer when it was asked last, for whoever runs it; None: it did."""
        return self._load_trouble or self._admissions.trouble

    async def start(self) -> None:
        """Read the callers; from then on follow their changes, and keep this process's leases alive.

        Raises:
            ToolError, asyncio.TimeoutError: the database cannot be used now; it may be tried again.
        """
        await self._load()
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def look_after(self) -> None:
        """What has to be done about once a second: follow the callers' changes, give back what is idle, show that this
        process lives, and now and then clean up. `start` sees to it."""
        before = self.trouble
        await self.refresh()
        await self._admissions.look_after()
        if self._ticks() - self._forgot_at > _FORGET_EVERY:
            self._forgot_at = self._ticks()
            with contextlib.suppress(ToolError, asyncio.TimeoutError):
                await _within(self._directory_thread, self._forget)
        if self.trouble and not before:
            log.error("callers' changes and limits cannot be looked up: %s", self.trouble)
        elif before and not self.trouble:
            log.warning("callers' changes and limits can be looked up again")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            try:
                await self.look_after()
            except Exception:
                # Whatever it is: without this task nobody would be locked out any more.
                log.exception("callers' changes and limits could not be looked after")

    async def close(self) -> None:
        """Give back what was not used; what is spent and not yet recorded stays set aside. Call it when no request is
        under way any more."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        await self._admissions.give_everything_back()
        self._lease_thread.shutdown(wait=False)
        self._directory_thread.shutdown(wait=False)

    async def find(self, api_key: bytes) -> Caller | None:
        """The caller of a key that `authenticate` does not know: it may have been made a moment ago.

        Raises:
            LimitsUnavailable: the database does not answer, so that nobody can tell.
        """
        if not keys.is_well_formed(api_key):
            return None
        if not await self.refresh(force=True):
            raise LimitsUnavailable(_EVERY, "keys cannot be looked up now; try again in a moment")
        return self.authenticate(api_key)

    async def refresh(self, force: bool = False) -> bool:
        """Follow the database's callers; whether it answered. With `force` by a look that begins after this call."""
        if not force and self._ticks() - self._loaded_at < _BETWEEN_LOADS:
            return self._load_trouble is None
        if self._next_load is None:
            self._next_load = asyncio.get_running_loop().create_task(self._load_when_due())
        return await asyncio.shield(self._next_load)

    async def _load_when_due(self) -> bool:
        async with self._loading:
            due_in = self._loaded_at + _BETWEEN_LOADS - self._ticks()
            if due_in > 0:
                await asyncio.sleep(due_in)
            # Who comes from now on may have a key that this look misses.
            self._next_load = None
            try:
                await self._load()
            except (ToolError, asyncio.TimeoutError) as error:
                self._load_trouble = str(error) or "it does not answer in time"
                return False
            return True

    async def _load(self) -> None:
        self._loaded_at = self._ticks()
        version = self._directory.copy.version
        copy = await _within(self._directory_thread, directory.load, self._database, version)
        self._load_trouble = None
        if copy is not None:
            self._directory.replace(copy)
            self._admissions.change_limits(copy.by_id)

    def _forget(self) -> None:
        with self._database.snapshot() as cursor:
            now = clocks.now(cursor, self._database.dialect, self._clock, self._ticks)
        allowances.forget(self._database, now)

    async def _in_lease_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await _within(self._lease_thread, function, *arguments)


async def _within(thread: ThreadPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; TimeoutError if it takes too long: then its result is dropped, whatever it will be."""
    future = asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
    return await asyncio.wait_for(future, _ANSWER_WITHIN)

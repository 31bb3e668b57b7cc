"""Letting requests in within their callers' limits: from what this process holds, else after asking the database.

While the database does not answer, callers with limits use up what is held, for as long as the lease lives; then they
are refused. Nobody with limits is ever served without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from inference_service.callers import allowances, clocks, refusals
from inference_service.callers.allowances import Ask, Grant, Return
from inference_service.callers.caller import Caller, Limits
from inference_service.callers.pools import NEVER_LOW, Account, Admission, Pool
from inference_service.callers.refusals import LimitsUnavailable
from inference_service.errors import ToolError
from inference_service.sql import Database

InThread = Callable[..., Awaitable[Any]]

# The holder stops before the others take it for dead, and shows that it lives in time (seconds before it would stop).
_MARGIN = 5.0
_RENEWED_WITH = 30.0
# How long "there is not enough left" is believed without asking again: a caller over its limit must not make the
# database work.
_RECHECK = 0.25
_RETRY_WHEN_DOWN = 1.0
_BUSY_WITHIN = 1.0
_QUIET_AFTER = 10.0
_IDLE_LOOKS = 3
_KEPT_AFTER_END = 3600.0
_NEXT_MINUTE_FROM = 2.0
_NOTHING_HELD = Admission(0, 0, None, None, None)


class Admissions:
    """The pools of all callers of this process. `in_thread` runs a function of I/O without stopping the event loop."""

    def __init__(
        self,
        database: Database,
        holder: str,
        in_thread: InThread,
        clock: Callable[[], float],
        ticks: Callable[[], float],
    ) -> None:
        self.trouble: str | None = None
        """Why the database could not be asked last time; None: it could."""
        self._database = database
        self._holder = holder
        self._in_thread = in_thread
        self._clock = clock
        self._ticks = ticks
        self._callers: dict[str, Caller] = {}
        self._accounts: dict[str, Account] = {}
        self._wanting: dict[str, Account] = {}
        self._asking = asyncio.Lock()
        self._next_question: asyncio.Task[LimitsUnavailable | None] | None = None
        self._alive_until = 0.0
        self._was_alive = False
        self._down_until = 0.0

    def try_admit(self, caller: Caller, tokens: int, nano_usd: int, at: float | None = None) -> Admission | None:
        """Let a request in if what this process holds is enough; None: `await admit(…)` decides.

        `tokens` and `nano_usd` are upper estimates; a cost of 0 is for what has no price, anything that has one costs
        at least 1. `at` is the row's `time`, by default now: the day and the month that pay.
        """
        if not caller.limited:
            return _NOTHING_HELD
        account = self._accounts.get(caller.id)
        if account is None:
            return None
        now = self._clock()
        requests = token_pool = day = month = None
        if account.has_rates:
            if not account.minute_start <= now < account.minute_end:
                return None
            requests = account.requests
            if requests is not None and requests.available < 1:
                return None
            token_pool = account.tokens
            if token_pool is not None and tokens and token_pool.available < tokens:
                return None
        if account.has_budget:
            if not account.day_start <= (now if at is None else at) < account.day_end:
                return None
            day = account.day
            month = account.month
            if nano_usd:
                if self._ticks() >= self._alive_until:
                    return None
                if day is not None and day.available < nano_usd:
                    return None
                if month is not None and month.available < nano_usd:
                    return None
        if requests is not None:
            requests.available = left = requests.available - 1
            requests.touched = True
            if left < requests.low:
                self._fetch_ahead(account)
        if token_pool is not None:
            token_pool.available = left = token_pool.available - tokens
            token_pool.touched = True
            if left < token_pool.low:
                self._fetch_ahead(account)
        if day is not None:
            day.available = left = day.available - nano_usd
            day.touched = True
            if left < day.low:
                self._fetch_ahead(account)
        if month is not None:
            month.available = left = month.available - nano_usd
            month.touched = True
            if left < month.low:
                self._fetch_ahead(account)
        return Admission(tokens, nano_usd, token_pool, day, month)

    async def admit(self, caller: Caller, tokens: int, nano_usd: int, at: float | None = None) -> Admission:
        """The same, asking the database for more if need be.

        Raises:
            LimitExceeded: a limit does not allow it; nothing was spent.
            LimitsUnavailable: the database does not answer, and what this process holds is not enough.
        """
        if not caller.limited:
            return _NOTHING_HELD
        at = self._clock() if at is None else at
        while True:
            account = self._accounts.get(caller.id)
            if account is None:
                # The request may be older than the newest limits.
                limits = self._callers.get(caller.id, caller).limits
                account = self._accounts[caller.id] = Account(caller.id, caller.name, limits)
            now, ticks = self._clock(), self._ticks()
            account.turn_to(now, at)
            if ticks >= self._alive_until:
                self._lapse()
            admission = self.try_admit(caller, tokens, nano_usd, at)
            if admission is not None:
                return admission
            short = [(pool, amount) for pool, amount in account.needs(tokens, nano_usd) if pool.available < amount]
            for pool, amount in short:
                if ticks - pool.asked_at < _RECHECK and amount - pool.available > pool.left:
                    raise refusals.exceeded(account.caller_name, pool, amount, now)
            await self._ask_for(account, short)

    def change_limits(self, callers: dict[str, Caller]) -> None:
        """Take over the limits of these callers by id; whoever is not among them holds nothing any more."""
        self._callers = callers
        for id, account in list(self._accounts.items()):
            caller = callers.get(id)
            if caller is None or caller.limits != account.limits:
                for pool in account.pools.values():
                    pool.give_up()
                account.change_limits(caller.limits if caller else Limits())

    async def look_after(self) -> None:
        """To be called about each second: gives back what is idle, and shows that this holder lives."""
        now, ticks = self._clock(), self._ticks()
        if self._was_alive and ticks >= self._alive_until:
            self._lapse()
        for account in list(self._accounts.values()):
            self._look_after(account, now)
            if not account.pools:
                del self._accounts[account.caller_id]
        if self._wanting or (self._was_alive and self._is_renewal_due()):
            await self._ask()

    async def give_everything_back(self) -> None:
        """Give back all that is unused. Nothing is admitted from memory until the database is asked again."""
        # A holder that was taken for dead learns just that by its first question.
        for _ in range(2):
            for account in self._accounts.values():
                for pool in account.pools.values():
                    pool.give_up()
                if any(pool.unconfirmed for pool in account.pools.values()):
                    self._wanting[account.caller_id] = account
            if self._wanting:
                await self._ask()

    def _look_after(self, account: Account, now: float) -> None:
        for key, pool in list(account.pools.items()):
            if pool.touched:
                pool.touched, pool.idle = False, 0
            elif now >= pool.start:
                pool.idle += 1
                if pool.idle >= _IDLE_LOOKS:
                    pool.give_up()
            if pool.unconfirmed:
                self._wanting[account.caller_id] = account
            if now > pool.end + (_KEPT_AFTER_END if pool.quantity.is_money else 0):
                del account.pools[key]
        if account.has_rates and 0 < account.minute_end - now < _NEXT_MINUTE_FROM and account.prepare_next_minute():
            self._wanting[account.caller_id] = account

    def _is_renewal_due(self) -> bool:
        return self._ticks() > self._alive_until - _RENEWED_WITH

    def _fetch_ahead(self, account: Account) -> None:
        if account.caller_id not in self._wanting and self._ticks() >= self._down_until:
            self._wanting[account.caller_id] = account
            if self._next_question is None:
                self._next_question = asyncio.get_running_loop().create_task(self._question())

    async def _ask_for(self, account: Account, short: list[tuple[Pool, int]]) -> None:
        if self._ticks() < self._down_until:
            raise _unavailable()
        for pool, amount in short:
            pool.wait_for(amount)
        self._wanting[account.caller_id] = account
        error = await self._ask()
        if error is not None:
            raise error

    async def _ask(self) -> LimitsUnavailable | None:
        """Wait for the next question to the database, whoever else asks with it."""
        if self._next_question is None:
            self._next_question = asyncio.get_running_loop().create_task(self._question())
        # One waiter's client may go away; the others still want the answer.
        return await asyncio.shield(self._next_question)

    async def _question(self) -> LimitsUnavailable | None:
        """Ask the database once for all who wait; the reason if it does not answer. One question after the other: a
        lease is compared with what this process knows of it."""
        async with self._asking:
            self._next_question = None
            accounts, self._wanting = self._wanting, {}
            asks, returns = [], []
            for account in accounts.values():
                for pool in account.pools.values():
                    if pool.returning:
                        returns.append(((account.caller_id, pool.quantity.name, pool.start), pool.returning))
                        pool.returning = 0
                    if pool.waiting or pool.available < pool.low or (pool.unconfirmed and pool.quantity.is_money):
                        asks.append((pool, _ask(account, pool)))
                    pool.waiting = pool.least_waiting = 0
                    # Should the answer be lost, the database may count more as ours than we know of.
                    pool.unconfirmed = pool.quantity.is_money
            if not (asks or returns or self._is_renewal_due()):
                return None
            return await self._take(asks, returns)

    async def _take(self, asks: list[tuple[Pool, Ask]], returns: list[Return]) -> LimitsUnavailable | None:
        started = self._ticks()
        try:
            grants = await self._in_thread(self._take_in_database, [ask for _, ask in asks], returns)
        except (ToolError, asyncio.TimeoutError) as error:
            self.trouble = str(error) or "it does not answer in time"
            self._down_until = self._ticks() + _RETRY_WHEN_DOWN
            return _unavailable()
        self.trouble = None
        if grants is None:
            self._lapse()
        else:
            for (pool, ask), grant in zip(asks, grants, strict=True):
                _put(pool, ask, grant, self._ticks())
        self._alive_until = max(self._alive_until, started + allowances.LEASE_SECONDS - _MARGIN)
        self._was_alive = True
        return None

    def _take_in_database(self, asks: list[Ask], returns: list[Return]) -> list[Grant] | None:
        """The grants; None if others took this holder for dead, so that nothing that it holds is its own any more."""
        with self._database.transaction() as cursor:
            now = clocks.now(cursor, self._database.dialect, self._clock, self._ticks)
            was_alive = allowances.renew(cursor, self._holder, now)
            if self._was_alive and not was_alive:
                return None
            return allowances.take(cursor, self._holder, now, asks, returns)

    def _lapse(self) -> None:
        """The lease ran out: what is unused may be others' by now."""
        self._alive_until = 0.0
        for account in self._accounts.values():
            for pool in account.pools.values():
                if pool.quantity.is_money:
                    pool.give_up()


def _unavailable() -> LimitsUnavailable:
    # Callers are not told where the database is and what it says.
    return LimitsUnavailable(
        _RETRY_WHEN_DOWN, "the limits of this caller cannot be looked up now; try again in a moment"
    )


def _ask(account: Account, pool: Pool) -> Ask:
    least = want = 1 if pool.available < pool.low else 0
    if pool.waiting:
        least = max(1, pool.least_waiting - pool.available)
        want = max(least, pool.waiting - pool.available)
    return Ask(
        account.caller_id,
        pool.quantity.name,
        pool.start,
        pool.limit,
        known=pool.granted,
        debt=max(0, -pool.available),
        least=least,
        want=want,
        ahead=pool.ahead,
    )


def _put(pool: Pool, ask: Ask, grant: Grant, ticks: float) -> None:
    pool.available += grant.amount
    pool.granted += grant.granted - ask.known
    pool.left, pool.used, pool.asked_at = grant.left, grant.used, ticks
    # It may have given up something while the question was under way.
    pool.unconfirmed = pool.granted != grant.granted
    if not grant.amount:
        pool.low = NEVER_LOW
        return
    pool.low = grant.amount // 2 if grant.amount > ask.want else NEVER_LOW
    if ticks - pool.granted_at < _BUSY_WITHIN:
        pool.ahead = min(max(pool.ahead, ask.want) * 2, pool.limit)
    elif ticks - pool.granted_at > _QUIET_AFTER:
        pool.ahead //= 2
    pool.granted_at = ticks

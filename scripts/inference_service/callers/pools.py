"""What one process holds of its callers' limits, in memory: the part of a request's path that has to take microseconds.

A pool is what this process may still give out of one limit in one window. An admission takes an upper estimate out of
its caller's pools, all or none; settling it puts back what was not used. Nothing here waits or asks anybody.
"""

from __future__ import annotations

from inference_service.callers.caller import Limits
from inference_service.callers.windows import DAY, MONTH, REQUESTS, TOKENS, Quantity, end_of, start_of

NEVER_LOW = -(1 << 62)
LONG_AGO = float("-inf")


class Pool:
    """`available` goes below zero when requests used more than was estimated; what is granted next pays that first.

    `granted` counts what the database gave and was not given up: `allowances.take` compares it with the lease.
    """

    __slots__ = (
        "ahead",
        "asked_at",
        "available",
        "end",
        "granted",
        "granted_at",
        "idle",
        "least_waiting",
        "left",
        "limit",
        "low",
        "quantity",
        "returning",
        "start",
        "touched",
        "unconfirmed",
        "used",
        "waiting",
    )

    def __init__(self, quantity: Quantity, start: int, limit: int) -> None:
        self.quantity = quantity
        self.start = start
        self.end = end_of(quantity.window, start)
        self.limit = limit
        self.available = 0
        self.granted = 0
        self.low = NEVER_LOW
        """Below this more is fetched in the background."""
        self.ahead = 0
        """How much to fetch beyond what is needed now: grows while the pool runs dry quickly."""
        self.granted_at = LONG_AGO
        self.asked_at = LONG_AGO
        self.left = 0
        """What the database had left when it was asked last, beyond what it gave."""
        self.used = 0
        self.waiting = 0
        self.least_waiting = 0
        """What requests need that wait for the next answer: together, and the most modest one."""
        self.touched = True
        """Whether anything was taken since the last look for idle pools."""
        self.idle = 0
        """For how many looks nothing was taken."""
        self.unconfirmed = False
        """Whether the database may believe that we hold more than we do."""
        self.returning = 0
        """What was given up of a minute and not yet given back."""

    def wait_for(self, amount: int) -> None:
        """Ask for this much more with the next question to the database."""
        self.least_waiting = min(self.least_waiting, amount) if self.waiting else amount
        self.waiting += amount

    def give_up(self) -> None:
        """Stop using what is unused. The database has yet to learn of it."""
        amount = max(0, self.available)
        if amount:
            self.available = 0
            self.granted -= amount
            self.unconfirmed = True
            if not self.quantity.is_money:
                self.returning += amount
        self.low = NEVER_LOW
        self.asked_at = LONG_AGO


class Admission:
    """A request that was let in, with what it holds until it is settled."""

    __slots__ = ("_day", "_month", "_nano_usd", "_open", "_tokens", "_tokens_pool")

    def __init__(
        self, tokens: int, nano_usd: int, tokens_pool: Pool | None, day: Pool | None, month: Pool | None
    ) -> None:
        self._open = True
        self._tokens = tokens
        self._nano_usd = nano_usd
        self._tokens_pool = tokens_pool
        self._day = day
        self._month = month

    def settle(self, tokens: int, nano_usd: int | None) -> None:
        """Replace the estimate by what was really used; call it once the request is over, whatever became of it.

        `nano_usd` is the cost of the row (`money.nano_usd(row.cost_usd)`), None where the row has none: then nothing is
        known to have been spent. Calling it again changes nothing.
        """
        if not self._open:
            return
        self._open = False
        pool = self._tokens_pool
        if pool is not None:
            pool.available += self._tokens - tokens
        unspent = self._nano_usd - (nano_usd or 0)
        pool = self._day
        if pool is not None:
            pool.available += unspent
        pool = self._month
        if pool is not None:
            pool.available += unspent


class Account:
    """The pools of one caller: the current ones as fields, all that are not over for long in `pools`."""

    __slots__ = (
        "caller_id",
        "caller_name",
        "day",
        "day_end",
        "day_start",
        "has_budget",
        "has_rates",
        "limits",
        "minute_end",
        "minute_start",
        "month",
        "newest",
        "pools",
        "requests",
        "tokens",
    )

    def __init__(self, caller_id: str, caller_name: str, limits: Limits) -> None:
        self.caller_id = caller_id
        self.caller_name = caller_name
        self.pools: dict[tuple[str, int], Pool] = {}
        self.newest: dict[str, Pool] = {}
        self.change_limits(limits)

    def change_limits(self, limits: Limits) -> None:
        """Other limits from now on. What is under way is settled as ever."""
        self.limits = limits
        self.has_rates = limits.requests_per_minute is not None or limits.tokens_per_minute is not None
        self.has_budget = limits.nano_usd_per_day is not None or limits.nano_usd_per_month is not None
        # No moment is in these windows: the next request goes through `turn_to`.
        self.minute_start = self.minute_end = self.day_start = self.day_end = 0
        self.requests: Pool | None = None
        self.tokens: Pool | None = None
        self.day: Pool | None = None
        self.month: Pool | None = None

    def turn_to(self, now: float, at: float) -> None:
        """Make the windows current that hold `now` (rates) and `at` (budgets)."""
        if self.has_rates:
            self.minute_start = start_of("minute", now)
            self.minute_end = end_of("minute", self.minute_start)
            self.requests = self._pool(REQUESTS, now)
            self.tokens = self._pool(TOKENS, now)
        if self.has_budget:
            self.day_start = start_of("day", at)
            self.day_end = end_of("day", self.day_start)
            self.day = self._pool(DAY, at)
            self.month = self._pool(MONTH, at)

    def needs(self, tokens: int, nano_usd: int) -> list[tuple[Pool, int]]:
        """Each current pool with what a request takes out of it."""
        takes = ((self.requests, 1), (self.tokens, tokens), (self.day, nano_usd), (self.month, nano_usd))
        return [(pool, amount) for pool, amount in takes if pool is not None and amount]

    def prepare_next_minute(self) -> bool:
        """Whether there is anything to fetch for the coming minute: there is for a caller who is busy in this one."""
        busy = False
        for pool in (self.requests, self.tokens):
            if pool is not None and pool.ahead and pool.idle == 0:
                following = self._pool(pool.quantity, pool.end)
                if following is not None and following.asked_at == LONG_AGO:
                    following.low = 1
                    busy = True
        return busy

    def _pool(self, quantity: Quantity, at: float) -> Pool | None:
        limit = quantity.limit_of(self.limits)
        if limit is None:
            return None
        start = start_of(quantity.window, at)
        pool = self.pools.get((quantity.name, start))
        if pool is None:
            pool = self.pools[(quantity.name, start)] = Pool(quantity, start, limit)
            before = self.newest.get(quantity.name)
            # A busy caller is as busy in the next minute.
            pool.ahead = before.ahead if before else 0
            self.newest[quantity.name] = pool
        pool.limit = limit
        return pool

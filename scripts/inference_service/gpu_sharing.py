"""Who pays for a GPU: at each instant, the requests that are under way share its price equally (processor sharing).

One that is alone is charged all of the GPU's time; two at once, half of it each; the time in which there is none is
idle. So charged and idle together are what the GPU costs, and no amount is counted twice or lost.

This takes the same few steps for each request, however many are under way: the meter adds up what *one* request would
have been charged that had been there from the start, and a request is charged by how much that grew between its begin
and its end. All amounts are whole: USD per hour have nine decimals at most, so that a nanosecond costs a whole number
of 1e-9 USD / 3600e9. What a division among n leaves over goes into the next interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from inference_service import money

_NS_PER_HOUR = 3_600_000_000_000
_NANO_PER_USD = 10**9
_UNITS_PER_USD = _NANO_PER_USD * _NS_PER_HOUR
_UNITS_PER_FEMTO = _UNITS_PER_USD // money.FEMTO_PER_USD


@dataclass(frozen=True)
class Shares:
    """What became of a GPU's cost since its meter was started, in USD, exactly.

    `cost` is `charged` + `idle` + `under_way`, which is what requests that have not ended will be charged for the time
    until now; it is 0 where there are none.
    """

    cost: Fraction
    charged: Fraction
    idle: Fraction
    under_way: Fraction


class ProcessorSharing:
    """Shares the cost of one service's GPUs among its requests. For one thread; a time that goes back is no time."""

    def __init__(self, usd_per_hour: Sequence[tuple[int, Decimal]], now_ns: int) -> None:
        """`usd_per_hour` is what the GPUs cost together, each price from its time (nanoseconds since 1970 UTC) on, in
        order of time; before the first it is 0. The meter starts at `now_ns`.

        Raises:
            ValueError: a price has more than nine decimals.
        """
        self._now = now_ns
        self._under_way = 0
        self._cost = 0
        self._idle = 0
        self._charged_femto = 0
        self._per_request = 0  # What one request would have been charged that had been there from the start.
        self._undivided = 0  # What the division among those under way left over: less than one unit for each of them.
        self._unrounded = 0  # What charges in whole 1e-15 USD left over: less than that, for the next charge.
        self._set_prices(usd_per_hour)

    @property
    def price_number(self) -> int:
        """Which of the prices holds at the time of the last event; -1 before the first one."""
        return self._next - 1

    def begin(self, now_ns: int) -> int | None:
        """A request is under way from now on. Returns what `end` wants to know of it; None before the first price: that
        request is none of this meter's."""
        self.advance(now_ns)
        if not self._next:
            return None
        self._under_way += 1
        return self._per_request

    def end(self, begun: int, now_ns: int) -> Decimal:
        """The request is not under way any more. Returns its charge in USD, to 1e-15 USD; call it once for each."""
        self.advance(now_ns)
        self._under_way -= 1
        charge, self._unrounded = divmod(self._per_request - begun + self._unrounded, _UNITS_PER_FEMTO)
        self._charged_femto += charge
        if not self._under_way:
            self._settle()
        return money.usd(charge)

    def change_prices(self, usd_per_hour: Sequence[tuple[int, Decimal]], now_ns: int) -> None:
        """From now on these prices hold; what was charged until now stays. Raises like the constructor."""
        self.advance(now_ns)
        self._set_prices(usd_per_hour)

    def advance(self, now_ns: int) -> None:
        """Account for the time until now; everything else does this first."""
        if now_ns <= self._now:
            return
        if self._next < len(self._changes) and self._changes[self._next] <= now_ns:
            amount = self._pass_changes(now_ns)
        else:
            amount = (now_ns - self._now) * self._rate
            self._now = now_ns
        self._cost += amount
        if self._under_way:
            each, self._undivided = divmod(amount + self._undivided, self._under_way)
            self._per_request += each
        else:
            self._idle += amount

    def shares(self, now_ns: int) -> Shares:
        """What became of the cost until now."""
        self.advance(now_ns)
        charged = self._charged_femto * _UNITS_PER_FEMTO
        return Shares(
            cost=Fraction(self._cost, _UNITS_PER_USD),
            charged=Fraction(charged, _UNITS_PER_USD),
            idle=Fraction(self._idle, _UNITS_PER_USD),
            under_way=Fraction(self._cost - charged - self._idle, _UNITS_PER_USD),
        )

    def upper_bound_nano_usd(self, nanoseconds: int) -> int:
        """The most, in 1e-9 USD and rounded up, that a request of so long can be charged: alone, at the dearest of the
        price of now and those that are known to come."""
        dearest = max(self._rate, *self._rates[self._next :], 0)
        # One more for the crumbs of others, which may lift a charge by 1e-15 USD.
        return -(-nanoseconds * dearest // _NS_PER_HOUR) + 1

    def _settle(self) -> None:
        """Nobody is left who could be charged for the crumbs, which are less than 1e-15 USD: they are idle."""
        self._idle = self._cost - self._charged_femto * _UNITS_PER_FEMTO
        self._unrounded = self._undivided = 0

    def _set_prices(self, usd_per_hour: Sequence[tuple[int, Decimal]]) -> None:
        self._changes = [since for since, _ in usd_per_hour]
        self._rates = [_units_per_nanosecond(usd) for _, usd in usd_per_hour]
        self._next = 0
        self._rate = 0
        self._pass_changes(self._now)

    def _pass_changes(self, now_ns: int) -> int:
        """Move on to `now_ns` over all changes of the price until then. Returns the cost of the time in between."""
        amount = 0
        while self._next < len(self._changes) and self._changes[self._next] <= now_ns:
            since = max(self._changes[self._next], self._now)
            amount += (since - self._now) * self._rate
            self._now, self._rate = since, self._rates[self._next]
            self._next += 1
        amount += (now_ns - self._now) * self._rate
        self._now = now_ns
        return amount


def _units_per_nanosecond(usd_per_hour: Decimal) -> int:
    # A unit is so small that 1e-9 USD an hour are just one in a nanosecond.
    nano = Fraction(usd_per_hour) * _NANO_PER_USD
    if nano.denominator != 1:
        raise ValueError(f"{usd_per_hour} USD an hour has more than nine decimals")
    return nano.numerator

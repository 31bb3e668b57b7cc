"""Money in whole numbers: 1e-15 USD where it must be exact, 1e-9 USD where limits are counted.

A price has at most six decimals per million tokens, so that a token's price is a whole number of 1e-12 USD, and a
batch's part of it one of 1e-15 USD. Python's integers have no end, and add up without an error.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal

FEMTO_PER_USD = 10**15
FEMTO_PER_NANO = 10**6

_EXACT = Context(prec=100)
"""The thread's own context may round to fewer digits than an amount has."""


def usd(femto_usd: int) -> Decimal:
    """So many 1e-15 USD as USD, exactly; with nine decimals where these say it all."""
    nano_usd, rest = divmod(femto_usd, FEMTO_PER_NANO)
    return Decimal(femto_usd).scaleb(-15, _EXACT) if rest else Decimal(nano_usd).scaleb(-9, _EXACT)


def nano_usd(amount: Decimal) -> int:
    """USD in 1e-9 USD, rounded up: a limit is never passed by what rounding lost."""
    return int(amount.scaleb(9, _EXACT).to_integral_value(ROUND_CEILING, _EXACT))


def nano_of(femto_usd: int) -> int:
    """So many 1e-15 USD in 1e-9 USD, rounded up."""
    return -(-femto_usd // FEMTO_PER_NANO)

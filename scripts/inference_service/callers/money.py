"""Money as integers of nano-USD (1e-9 USD), rounded up per request, so that a budget is never exceeded by rounding."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, localcontext

PER_USD = 1_000_000_000


def nano_usd(usd: Decimal) -> int:
    """A cost in nano-USD, rounded up."""
    return int((usd * PER_USD).to_integral_value(ROUND_CEILING))


def as_usd(nano: int) -> str:
    """The exact decimal of an amount, in USD, without an exponent or zeros at the end: `0.25`."""
    with localcontext() as context:
        context.prec = 40
        text = format(Decimal(nano) / PER_USD, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text

"""What GPUs cost: the prices of references/pricing.yaml, or of the user's own file, and a service's cost so far.

Money is never a binary fraction here: prices are decimals, times are whole microseconds, and what they add up to is
rounded once, at the end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Any

from inference_service import pricing_file, registry_entries
from inference_service.contracts import ServiceEntry

SELECTORS = ("gpu", "instance_type", "resource_shape")
"""What a price may be for, beside the platform: fields that drivers note in an entry's extras."""

PRICED_BY = "gpu:"
"""How the `priced_by` of a request begins that was charged for GPU time."""

_HOUR = 3_600_000_000  # microseconds
_CENTS_OF_A_CENT = 10_000
_DECIMALS = 9  # of a price, so that all that is shared among requests is whole (gpu_sharing.py)


@dataclass(frozen=True)
class GpuPrice:
    """USD for one GPU for one hour, from a moment on. `selector` is None where it is for all of the platform's GPUs,
    else the field of SELECTORS and the pattern that it must match."""

    platform: str
    selector: tuple[str, str] | None
    usd_per_gpu_hour: Decimal
    effective_from: datetime
    source: str


@dataclass(frozen=True)
class Cost:
    """What a service has cost so far, in USD; None where that is not known, and `unpriced_because` says why."""

    usd: Decimal | None
    unpriced_because: str | None = None


class UnpricedError(Exception):
    """What something cost is not known, and why."""


def gpu_prices(environ: Mapping[str, str] = os.environ) -> tuple[GpuPrice, ...]:
    """The prices of the file that TAO_INF_PRICING names, else (or where it has none) of references/pricing.yaml, in the
    file's order.

    Raises:
        ToolError: it cannot be read or breaks a rule; the message names file, key and rule.
    """
    for file in pricing_file.files(environ):
        rows = pricing_file.read(file).get("gpu_hour_prices")
        if rows is not None:
            return _prices(rows, file)
    return ()


def cost_so_far(entry: ServiceEntry, prices: Sequence[GpuPrice], until: datetime) -> Cost:
    """What the service's GPUs have cost from its start until then, each hour at the price that was in force."""
    try:
        return Cost(rounded(cost_between(entry, prices, None, until)))
    except UnpricedError as reason:
        return Cost(None, str(reason))


def cost_between(entry: ServiceEntry, prices: Sequence[GpuPrice], since: datetime | None, until: datetime) -> Fraction:
    """What the service's GPUs cost from then (its start, where it was not there earlier) until then, in USD, exactly.

    Raises:
        UnpricedError: that is not known; the text says why.
    """
    if entry.num_gpus <= 0:
        raise UnpricedError("it has no GPU, and prices are for GPUs")
    began = registry_entries.utc(entry.started_at)
    if began is None:
        raise UnpricedError("when it was started is not known")
    rows = in_force(entry, prices)
    if not rows:
        raise UnpricedError(f"there is no price for it on {entry.platform}: TAO_INF_PRICING names a file with yours")
    started = datetime.fromisoformat(began)
    start = started if since is None else max(started, since)
    known_from = rows[0].effective_from
    if start < until and start < known_from:
        earlier = "it was started before" if start == started else "more was asked for"
        raise UnpricedError(f"its price is known from {known_from.isoformat()} on, and {earlier}")
    return usd(entry.num_gpus, rows, start, until)


def in_force(entry: ServiceEntry, prices: Sequence[GpuPrice]) -> list[GpuPrice]:
    """The prices that hold for this service one after the other, the earliest first; none where none is for it."""
    here = [price for price in prices if price.platform == entry.platform]
    matching = [price for price in here if price.selector and _matches(price.selector, entry)]
    chosen = matching[0].selector if matching else None
    return sorted((price for price in here if price.selector == chosen), key=lambda price: price.effective_from)


def usd(num_gpus: int, prices: Sequence[GpuPrice], start: datetime, until: datetime) -> Fraction:
    """What so many GPUs cost from `start` until then, exactly. `prices` follow each other; before the first it is 0."""
    total = Fraction(0)
    for number, price in enumerate(prices):
        begins = max(start, price.effective_from)
        ends = min(until, prices[number + 1].effective_from) if number + 1 < len(prices) else until
        if begins < ends:
            microseconds = (ends - begins) // timedelta(microseconds=1)
            total += Fraction(price.usd_per_gpu_hour) * num_gpus * microseconds / _HOUR
    return total


def rounded(amount: Fraction) -> Decimal:
    """The amount to the hundredth of a cent, halves to even."""
    return Decimal(round(amount * _CENTS_OF_A_CENT)).scaleb(-4)


def _matches(selector: tuple[str, str], entry: ServiceEntry) -> bool:
    field, pattern = selector
    return fnmatchcase(str(entry.extras.get(field) or "").lower(), pattern.lower())


def _prices(rows: Sequence[Mapping[str, Any]], file: Path) -> tuple[GpuPrice, ...]:
    prices: list[GpuPrice] = []
    seen = set()
    for number, row in enumerate(rows):
        key = f"gpu_hour_prices.{number}"
        usd_per_gpu_hour = pricing_file.number(row["usd_per_gpu_hour"], file, f"{key}.usd_per_gpu_hour")
        if usd_per_gpu_hour.scaleb(_DECIMALS) % 1:
            message = f"{usd_per_gpu_hour} has more than {_DECIMALS} decimals"
            raise pricing_file.broken(file, f"{key}.usd_per_gpu_hour", message)
        price = GpuPrice(
            platform=row["platform"],
            selector=next(((field, row[field]) for field in SELECTORS if field in row), None),
            usd_per_gpu_hour=usd_per_gpu_hour,
            effective_from=pricing_file.moment(row["effective_from"], file, key),
            source=row["source"],
        )
        rule = (price.platform, price.selector, price.effective_from)
        if rule in seen:
            message = "an earlier row has another price for the same GPUs from the same moment on"
            raise pricing_file.broken(file, key, message)
        seen.add(rule)
        prices.append(price)
    return tuple(prices)

"""What GPUs cost: the prices of references/pricing.yaml, or of the user's own file, and a service's cost so far.

Money is never a binary fraction here: prices are decimals, times are whole microseconds, and what they add up to is
rounded once, at the end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Any

from inference_service import paths, reference_validation, registry_entries
from inference_service.contracts import ServiceEntry
from inference_service.errors import ToolError

SELECTORS = ("gpu", "instance_type", "resource_shape")
"""What a price may be for, beside the platform: fields that drivers note in an entry's extras."""

_HOUR = 3_600_000_000  # microseconds
_CENTS_OF_A_CENT = 10_000


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


def gpu_prices(environ: Mapping[str, str] = os.environ) -> tuple[GpuPrice, ...]:
    """The prices of the file that TAO_INF_PRICING names, else of references/pricing.yaml, in the file's order.

    Raises:
        ToolError: it cannot be read or breaks a rule; the message names file, key and rule.
    """
    file = Path(environ.get("TAO_INF_PRICING") or paths.REFERENCES / "pricing.yaml")
    document = reference_validation.validated(
        file, _dates_as_text(reference_validation.read_yaml(file)), schema="pricing"
    )
    prices = tuple(_price(row, file, number) for number, row in enumerate(document["gpu_hour_prices"]))
    seen = set()
    for number, price in enumerate(prices):
        rule = (price.platform, price.selector, price.effective_from)
        if rule in seen:
            raise _broken(file, number, "an earlier row has another price for the same GPUs from the same moment on")
        seen.add(rule)
    return prices


def cost_so_far(entry: ServiceEntry, prices: Sequence[GpuPrice], until: datetime) -> Cost:
    """What the service's GPUs have cost from its start until then, each hour at the price that was in force."""
    if entry.num_gpus <= 0:
        return Cost(None, "it has no GPU, and prices are for GPUs")
    began = registry_entries.utc(entry.started_at)
    if began is None:
        return Cost(None, "when it was started is not known")
    rows = in_force(entry, prices)
    if not rows:
        return Cost(None, f"there is no price for it on {entry.platform}: TAO_INF_PRICING names a file with yours")
    start = datetime.fromisoformat(began)
    if start < until and start < rows[0].effective_from:
        return Cost(None, f"its price is known from {rows[0].effective_from.isoformat()} on, and it was started before")
    return Cost(rounded(usd(entry.num_gpus, rows, start, until)))


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


def _price(row: Mapping[str, Any], file: Path, number: int) -> GpuPrice:
    # A number of YAML went through a binary fraction; its shortest spelling is what was written.
    usd_per_gpu_hour = Decimal(str(row["usd_per_gpu_hour"]))
    if not usd_per_gpu_hour.is_finite():
        raise _broken(file, number, f"usd_per_gpu_hour: {usd_per_gpu_hour} is no price")
    selector = next(((field, row[field]) for field in SELECTORS if field in row), None)
    return GpuPrice(
        platform=row["platform"],
        selector=selector,
        usd_per_gpu_hour=usd_per_gpu_hour,
        effective_from=_moment(row["effective_from"], file, number),
        source=row["source"],
    )


def _moment(text: str, file: Path, number: int) -> datetime:
    moment = registry_entries.utc(text if len(text) > len("2026-01-01") else f"{text}T00:00:00Z")
    if moment is None:
        raise _broken(file, number, f"effective_from: {text} is not in the calendar")
    return datetime.fromisoformat(moment)


def _broken(file: Path, number: int, message: str) -> ToolError:
    key = f"gpu_hour_prices.{number}"
    return ToolError("pricing_broken", f"{file}: {key}: {message}", "correct that row", file=str(file), key=key)


def _dates_as_text(document: Any) -> Any:
    """The document with what YAML read as dates written out: an unquoted 2026-01-01 is what everybody writes."""
    if isinstance(document, dict):
        return {key: _dates_as_text(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_dates_as_text(value) for value in document]
    if isinstance(document, datetime):
        # YAML has moved a moment with an offset to UTC and dropped the offset, or there was none: then it is UTC.
        return (document if document.tzinfo else document.replace(tzinfo=timezone.utc)).isoformat()
    return document.isoformat() if isinstance(document, date) else document

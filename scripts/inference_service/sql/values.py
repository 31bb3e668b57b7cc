"""What a value is in Python whichever dialect it came from: SQLite keeps times and decimals as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from decimal import Decimal


def stored_time(moment: datetime) -> str:
    """A time as it is stored in SQLite and shown: ISO 8601 in UTC with microseconds, always the same width."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def as_moment(value: str | datetime) -> datetime:
    """A time column's value as a datetime in UTC."""
    if isinstance(value, str):
        # Python 3.10's fromisoformat does not know the suffix Z.
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return value.astimezone(timezone.utc)


def as_numbers(value: str | Sequence[float] | None) -> list[float]:
    """What `nearest_ranks` gives; nothing of nothing."""
    numbers: Sequence[float] = json.loads(value) if isinstance(value, str) else value or ()
    return list(numbers)


def as_decimal(value: str | int | Decimal | None) -> Decimal | None:
    """A money column's value, or a sum of them."""
    return None if value is None else Decimal(value)

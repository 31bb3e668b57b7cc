"""The file of prices: references/pricing.yaml, and the user's own, which TAO_INF_PRICING names and which goes first.

What the two mean together is said at the top of references/pricing.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from inference_service import paths, reference_validation, registry_entries
from inference_service.errors import ToolError

OURS = paths.REFERENCES / "pricing.yaml"


def files(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The files that count, the one that goes before the other first."""
    users = environ.get("TAO_INF_PRICING")
    return (Path(users), OURS) if users else (OURS,)


def read(file: Path) -> Mapping[str, Any]:
    """The document in the file, dates as text.

    Raises:
        ToolError: it cannot be read or breaks the schema; the message names file, key and rule.
    """
    return reference_validation.validated(file, _dates_as_text(reference_validation.read_yaml(file)), schema="pricing")


def moment(text: str, file: Path, key: str) -> datetime:
    """A row's effective_from: a date is midnight UTC.

    Raises:
        ToolError: there is no such day or time.
    """
    found = registry_entries.utc(text if len(text) > len("2026-01-01") else f"{text}T00:00:00Z")
    if found is None:
        raise broken(file, key, f"effective_from: {text} is not in the calendar")
    return datetime.fromisoformat(found)


def number(value: float | str, file: Path, key: str) -> Decimal:
    """A price as it was written: a number of YAML went through a binary fraction, whose shortest spelling that is.

    Raises:
        ToolError: it is infinite or no number.
    """
    amount = Decimal(str(value))
    if not amount.is_finite():
        raise broken(file, key, f"{amount} is no price")
    return amount


def day_or_moment(since: datetime) -> str:
    """A row's effective_from, in UTC and as short as it can be."""
    since = since.astimezone(timezone.utc)
    midnight = since.time() == datetime.min.time()
    return since.date().isoformat() if midnight else since.isoformat().replace("+00:00", "Z")


def broken(file: Path, key: str, message: str) -> ToolError:
    """The error for a row that breaks a rule which JSON Schema cannot say."""
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

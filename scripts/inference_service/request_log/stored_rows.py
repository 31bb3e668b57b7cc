"""The gateway's rows as they are stored: one tuple of plain values per row, for the journal and the database.

What is expensive to convert is converted here, in microseconds, and nowhere else: a time is text (made of its second's
text, which many rows share), tags are JSON, a cost is a decimal's text.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any

import orjson

from inference_service import sql
from inference_service.request_log.redaction import name_without_secrets
from inference_service.request_log.rows import RequestRow

Values = tuple[Any, ...]

_CONVERTED = ("time", "tags", "cost_usd", "model")
_PLAIN = tuple(field.name for field in fields(RequestRow) if field.name not in _CONVERTED)
COLUMNS = (*_CONVERTED, *_PLAIN)
"""The columns of a stored row, in the order of its values."""

REQUEST_ID = COLUMNS.index("request_id")
_plain_values: Callable[[RequestRow], Values] = operator.attrgetter(*_PLAIN)
_LARGEST = 2**63 - 1


@functools.lru_cache(maxsize=8)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(whole))


def values_of(row: RequestRow) -> Values:
    """The row's values in the order of COLUMNS. What callers name themselves is cleaned of secrets."""
    whole = int(row.time)
    tags, cost, model = row.tags, row.cost_usd, row.model
    return (
        f"{_second(whole)}{int((row.time - whole) * 1e6):06d}Z",
        name_without_secrets(_json(tags)) if tags else None,
        None if cost is None else format(cost, "f"),
        None if model is None else name_without_secrets(model),
        *_plain_values(row),
    )


def _json(tags: Mapping[str, str]) -> str:
    try:
        return orjson.dumps(tags, dict).decode()
    except TypeError:
        return orjson.dumps({_storable(name): _storable(value) for name, value in tags.items()}).decode()


def row_of(values: Sequence[Any]) -> RequestRow:
    """The row that these values were made of; its time is that of the text, to the microsecond."""
    time_text, tags, cost, model, *plain = values
    row = RequestRow(**dict(zip(_PLAIN, plain, strict=True)), time=sql.as_moment(time_text).timestamp())
    row.tags = orjson.loads(tags) if tags else {}
    row.cost_usd = None if cost is None else Decimal(cost)
    row.model = model
    return row


def arranged(columns: Sequence[str], values: Sequence[Any]) -> Values:
    """Values that another version stored, in this version's order: what it did not know has its default.

    Raises:
        ValueError: there are not as many values as columns.
    """
    if tuple(columns) == COLUMNS and len(values) == len(COLUMNS):
        return tuple(values)
    known: Mapping[str, Any] = dict(zip(columns, values, strict=True))
    return tuple(known.get(name, _DEFAULTS[name]) for name in COLUMNS)


_DEFAULTS = dict(zip(COLUMNS, values_of(RequestRow(request_id="", time=0.0, route="")), strict=True))


def storable(values: Values) -> Values:
    """The same values without what no database takes: halves of characters, NUL, integers beyond 64 bits."""
    return tuple(_storable(value) for value in values)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}").replace("\\u0000", "\\ufffd")
    if isinstance(value, int) and abs(value) > _LARGEST:
        return None
    return value

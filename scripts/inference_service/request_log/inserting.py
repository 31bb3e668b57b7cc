"""Rows into the `requests` table, each exactly once, and what they cost settled in the same transaction.

SQLite gets many rows per statement: Python's lock is handed over once for each statement, not once for each row, so
that an event loop beside this thread hardly notices. PostgreSQL gets one JSON array and takes it apart itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import orjson

from inference_service import sql
from inference_service.request_log.rows import RequestRow
from inference_service.request_log.stored_rows import COLUMNS, REQUEST_ID, Values

Settle = Callable[[sql.Cursor, Sequence[RequestRow]], None]
"""Called inside the transaction with the rows that are new in it."""

_ROWS_PER_STATEMENT = (100, 10, 1)
_ATTEMPTS = 5
_POSTGRESQL_TYPES = {
    "time": "timestamptz",
    "tags": "jsonb",
    "cost_usd": "numeric",
    "stream": "boolean",
    "usage_estimated": "boolean",
    "http_status": "integer",
    "retries": "integer",
}
_POSTGRESQL_ENDINGS = {"_seconds": "float8", "_tokens": "bigint", "_bytes": "bigint"}


class SettlementFailed(Exception):
    """The rows could be stored, but what they cost could not be settled; nothing of either is kept."""


class _SomeAreKnown(Exception):
    """The database had some of the rows already."""


class Storable(Protocol):
    """A row to be stored: its values, and the row itself for the settlement."""

    values: Values

    @property
    def row(self) -> RequestRow: ...


def insert(database: sql.Database, entries: Sequence[Storable], settle: Settle, *, perhaps_known: bool = False) -> None:
    """Store the rows that the database does not have yet, and settle those, in one transaction.

    `perhaps_known` saves an attempt where it is likely that it has some.

    Raises:
        sql.DatabaseUnusable: as `Database.transaction`. Nothing is lost by trying again.
        SettlementFailed: see there.
        Exception: one of the rows holds what cannot be stored; nothing was.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with database.transaction() as cursor:
                # Rows are nearly always new, and counting them afterwards costs nothing.
                new = _unknown(cursor, database.dialect, entries) if perhaps_known or attempt else entries
                if _inserted(cursor, database.dialect, [entry.values for entry in new]) != len(new):
                    raise _SomeAreKnown
                _settle(database, cursor, settle, new)
            return
        except (_SomeAreKnown, sql.Collision):
            continue
    raise sql.DatabaseUnusable("database_unusable", "other processes are always in the way of storing requests")


def _settle(database: sql.Database, cursor: sql.Cursor, settle: Settle, new: Sequence[Storable]) -> None:
    if not new:
        return
    try:
        settle(cursor, [entry.row for entry in new])
    except Exception as error:
        if database.is_failing(error):
            raise
        raise SettlementFailed(f"{type(error).__name__}: {error}") from error


def _unknown(cursor: sql.Cursor, dialect: str, entries: Sequence[Storable]) -> list[Storable]:
    """Those that are not in the table, each once."""
    by_id: dict[str, Storable] = {}
    for entry in entries:
        by_id.setdefault(entry.values[REQUEST_ID], entry)
    among = "= ANY(:ids)" if dialect == "postgresql" else "IN (SELECT value FROM json_each(:ids))"
    ids = list(by_id) if dialect == "postgresql" else orjson.dumps(list(by_id)).decode()
    known = cursor.execute(f"SELECT request_id FROM requests WHERE request_id {among}", {"ids": ids})  # noqa: S608
    for (request_id,) in known:
        del by_id[request_id]
    return list(by_id.values())


def _inserted(cursor: sql.Cursor, dialect: str, rows: Sequence[Values]) -> int:
    if dialect == "postgresql":
        array = orjson.dumps(rows).decode()
        cursor.raw.execute(_postgresql_statement(), (array,))
        return cursor.rowcount
    inserted = start = 0
    for size in _ROWS_PER_STATEMENT:
        while start + size <= len(rows):
            flat = [value for values in rows[start : start + size] for value in values]
            cursor.raw.execute(_sqlite_statement(size), flat)
            inserted += cursor.rowcount
            start += size
    return inserted


@functools.cache
def _sqlite_statement(rows: int) -> str:
    one = f"({', '.join('?' * len(COLUMNS))})"
    return (
        f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES {', '.join([one] * rows)}"  # noqa: S608
        " ON CONFLICT (request_id) DO NOTHING"
    )


@functools.cache
def _postgresql_statement() -> str:
    values = ", ".join(f"(v->>{place})::{_postgresql_type(name)}" for place, name in enumerate(COLUMNS))
    return (
        f"INSERT INTO requests ({', '.join(COLUMNS)}) SELECT {values} FROM jsonb_array_elements(%s::jsonb) AS v"  # noqa: S608
        " ON CONFLICT (request_id) DO NOTHING"
    )


def _postgresql_type(column: str) -> str:
    for ending, type in _POSTGRESQL_ENDINGS.items():
        if column.endswith(ending):
            return type
    return _POSTGRESQL_TYPES.get(column, "text")

"""Forgetting: rows and bodies older than somebody wants to keep, some at a time, so that no writer waits for it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from inference_service import sql

_AT_ONCE = 1_000
_BREATH_SECONDS = 0.01


def forget(
    database: sql.Database, rows_before: datetime | None, bodies_before: datetime | None, *, dry_run: bool = False
) -> dict[str, Any]:
    """Delete the requests and the bodies from before those times (None: none of them), or count them only.

    A request's body goes with it. What is deleted is deleted, also if this is interrupted in the middle. SQLite gives
    the room to new rows, not back to the disk.

    Raises:
        ToolError: the database cannot be used.
    """
    bodies_before = max((moment for moment in (rows_before, bodies_before) if moment), default=None)
    forgotten = {}
    for table, key, before in (("request_bodies", "request_id", bodies_before), ("requests", "id", rows_before)):
        if before is None:
            forgotten[table] = 0
        elif dry_run:
            forgotten[table] = _counted(database, table, before)
        else:
            forgotten[table] = _deleted(database, table, key, before)
    return {
        "log": database.shown,
        "dry_run": dry_run,
        "requests_before": sql.stored_time(rows_before) if rows_before else None,
        "bodies_before": sql.stored_time(bodies_before) if bodies_before else None,
        "requests": forgotten["requests"],
        "bodies": forgotten["request_bodies"],
    }


def _counted(database: sql.Database, table: str, before: datetime) -> int:
    with database.snapshot() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {table} WHERE time < :before", {"before": before})  # noqa: S608
        ((count,),) = cursor.fetchall()
        return int(count)


def _deleted(database: sql.Database, table: str, key: str, before: datetime) -> int:
    statement = (
        f"DELETE FROM {table} WHERE {key} IN"  # noqa: S608
        f" (SELECT {key} FROM {table} WHERE time < :before ORDER BY time LIMIT {_AT_ONCE})"
    )
    total = 0
    while True:
        with database.transaction() as cursor:
            cursor.execute(statement, {"before": before})
            deleted = cursor.rowcount
        total += deleted
        if deleted < _AT_ONCE:
            return total
        time.sleep(_BREATH_SECONDS)

"""One database behind one small synchronous interface: a SQLite file, or PostgreSQL where several machines share it.

    database = sql.open("postgresql://gateway@db/usage")
    with database.transaction() as cursor:
        cursor.execute("UPDATE callers SET team = :team WHERE id = :id", {"team": "search", "id": 7})

Statements are written once, with parameters named `:name`; what the dialects spell differently is in
`database.expressions`. Drivers are imported when a database is used, not before.
"""

from __future__ import annotations

from inference_service.sql.database import Collision, Conflict, Cursor, Database, DatabaseUnusable, Values
from inference_service.sql.opening import in_memory, open, sqlite_url
from inference_service.sql.urls import refuse_password, without_password
from inference_service.sql.values import as_decimal, as_moment, as_numbers, stored_time

__all__ = [
    "Collision",
    "Conflict",
    "Cursor",
    "Database",
    "DatabaseUnusable",
    "Values",
    "as_decimal",
    "as_moment",
    "as_numbers",
    "in_memory",
    "open",
    "refuse_password",
    "sqlite_url",
    "stored_time",
    "without_password",
]

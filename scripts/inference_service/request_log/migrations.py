"""The request log's schema, as the list of steps that made it.

The list is append-only: a released step is never edited, a new column comes by a new step and is nullable or has a
default. So an old log opens in a new version, and an old version still writes to a log that a new one has opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

Migration = Sequence[str]

MIGRATIONS: tuple[Migration, ...] = (
    (
        # Times are ISO 8601 in UTC at one fixed width, so that text order is time order. Costs are decimals as text: a
        # sum of binary fractions would not be what callers are charged.
        """
        CREATE TABLE requests (
            id INTEGER PRIMARY KEY,
            request_id TEXT NOT NULL UNIQUE,
            time TEXT NOT NULL,
            caller TEXT NOT NULL,
            job_id TEXT,
            network_arch TEXT NOT NULL,
            model TEXT,
            platform TEXT,
            route TEXT NOT NULL,
            http_status INTEGER,
            error_type TEXT,
            queue_seconds REAL,
            first_byte_seconds REAL,
            total_seconds REAL,
            input_tokens INTEGER,
            output_tokens INTEGER,
            cached_tokens INTEGER,
            cost_usd TEXT,
            priced_by TEXT
        )
        """,
        "CREATE INDEX requests_time ON requests (time)",
    ),
)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the schema to the newest version, all steps or none; safe when several processes do it at once.

    `connection` must be in autocommit mode (isolation_level None). A schema that is newer than this list is left alone.
    """
    if version(connection) >= len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another process may have done it since.
        done = version(connection)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)"
        )
        for number, statements in enumerate(migrations[done:], start=done + 1):
            for statement in statements:
                connection.execute(statement)
            applied_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
            connection.execute("INSERT INTO schema_version VALUES (?, ?)", (number, applied_at))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def version(connection: sqlite3.Connection) -> int:
    """How many of the migrations this log has seen; 0 for an empty file."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'").fetchone()
    if not known:
        return 0
    (newest,) = connection.execute("SELECT MAX(version) FROM schema_version").fetchone()
    return int(newest or 0)

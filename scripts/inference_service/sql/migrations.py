"""The schema, as the list of steps that made it, in both dialects.

The list is append-only: a released step is never edited, a new column comes by a new step and is nullable or has a
default. So an old database opens in a new version, and an old version still writes to one that a new one has opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from inference_service.callers import schema as callers

if TYPE_CHECKING:
    import sqlite3


@dataclass(frozen=True)
class Migration:
    """One step, as statements of each dialect."""

    sqlite: Sequence[str]
    postgresql: Sequence[str]


# Times are ISO 8601 in UTC at one fixed width, so that text order is time order. Costs are decimals as text: a sum of
# binary fractions would not be what callers are charged. PostgreSQL came with the second step.
_REQUESTS = Migration(
    sqlite=(
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
    postgresql=(),
)

# What a gateway knows of a request. Bodies are in a table of their own: they are large, and deleted sooner.
_GATEWAY = Migration(
    sqlite=(
        "ALTER TABLE requests ADD COLUMN caller_id TEXT",
        "ALTER TABLE requests ADD COLUMN team TEXT",
        "ALTER TABLE requests ADD COLUMN project TEXT",
        "ALTER TABLE requests ADD COLUMN tags TEXT",  # JSON object of texts; NULL without any
        "ALTER TABLE requests ADD COLUMN stream INTEGER",
        "ALTER TABLE requests ADD COLUMN connect_seconds REAL",
        "ALTER TABLE requests ADD COLUMN first_token_seconds REAL",
        "ALTER TABLE requests ADD COLUMN overhead_seconds REAL",
        "ALTER TABLE requests ADD COLUMN cache_write_5m_tokens INTEGER",
        "ALTER TABLE requests ADD COLUMN cache_write_1h_tokens INTEGER",
        "ALTER TABLE requests ADD COLUMN usage_estimated INTEGER",
        "ALTER TABLE requests ADD COLUMN upstream_request_id TEXT",
        "ALTER TABLE requests ADD COLUMN retries INTEGER",
        "ALTER TABLE requests ADD COLUMN request_bytes INTEGER",
        "ALTER TABLE requests ADD COLUMN response_bytes INTEGER",
        "ALTER TABLE requests ADD COLUMN gateway TEXT",
        """
        CREATE TABLE request_bodies (
            request_id TEXT NOT NULL PRIMARY KEY,
            time TEXT NOT NULL,
            request TEXT,
            response TEXT
        ) WITHOUT ROWID
        """,
        "CREATE INDEX request_bodies_time ON request_bodies (time)",
    ),
    postgresql=(
        # Wide columns first: each column is aligned to its own size, and gaps would be stored.
        """
        CREATE TABLE requests (
            id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            time TIMESTAMPTZ NOT NULL,
            queue_seconds DOUBLE PRECISION,
            connect_seconds DOUBLE PRECISION,
            first_byte_seconds DOUBLE PRECISION,
            first_token_seconds DOUBLE PRECISION,
            total_seconds DOUBLE PRECISION,
            overhead_seconds DOUBLE PRECISION,
            input_tokens BIGINT,
            output_tokens BIGINT,
            cached_tokens BIGINT,
            cache_write_5m_tokens BIGINT,
            cache_write_1h_tokens BIGINT,
            request_bytes BIGINT,
            response_bytes BIGINT,
            http_status INTEGER,
            retries INTEGER,
            stream BOOLEAN,
            usage_estimated BOOLEAN,
            request_id TEXT NOT NULL UNIQUE,
            caller TEXT NOT NULL,
            caller_id TEXT,
            team TEXT,
            project TEXT,
            tags JSONB,
            job_id TEXT,
            network_arch TEXT NOT NULL,
            model TEXT,
            platform TEXT,
            route TEXT NOT NULL,
            error_type TEXT,
            cost_usd NUMERIC,
            priced_by TEXT,
            upstream_request_id TEXT,
            gateway TEXT
        )
        """,
        "CREATE INDEX requests_time ON requests (time)",
        """
        CREATE TABLE request_bodies (
            request_id TEXT NOT NULL PRIMARY KEY,
            time TIMESTAMPTZ NOT NULL,
            request TEXT,
            response TEXT
        )
        """,
        "CREATE INDEX request_bodies_time ON request_bodies (time)",
    ),
)

_CALLERS = Migration(sqlite=callers.STATEMENTS, postgresql=callers.STATEMENTS)

MIGRATIONS: tuple[Migration, ...] = (_REQUESTS, _GATEWAY, _CALLERS)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring a SQLite schema to the newest version, all steps or none; safe when several processes do it at once.

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
        for number, migration in enumerate(migrations[done:], start=done + 1):
            for statement in migration.sqlite:
                connection.execute(statement)
            applied_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
            connection.execute("INSERT INTO schema_version VALUES (?, ?)", (number, applied_at))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def version(connection: sqlite3.Connection) -> int:
    """How many of the migrations this SQLite file has seen; 0 for an empty one."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'").fetchone()
    if not known:
        return 0
    (newest,) = connection.execute("SELECT MAX(version) FROM schema_version").fetchone()
    return int(newest or 0)

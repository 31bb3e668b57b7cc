"""From a URL to a database."""

from __future__ import annotations

from pathlib import Path

from inference_service.sql import urls
from inference_service.sql.database import Database


def open(url: str) -> Database:
    """The database at `sqlite:///path` or `postgresql://…`. Nothing is read or made before its first transaction.

    Raises:
        BadInput: it is no such URL.
        ModuleNotFoundError: it is PostgreSQL, and psycopg is not installed.
    """
    if urls.dialect(url) == "sqlite":
        from inference_service.sql.sqlite import SqliteDriver

        return Database(SqliteDriver(urls.sqlite_path(url)))
    from inference_service.sql.postgresql import PostgresqlDriver

    return Database(PostgresqlDriver(url))


def in_memory() -> Database:
    """A database without rows that leaves no file anywhere. Each of its transactions begins with an empty one."""
    from inference_service.sql.sqlite import SqliteDriver

    return Database(SqliteDriver(None))


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return urls.of_sqlite(path)

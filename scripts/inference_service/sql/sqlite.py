"""SQLite: one file, shared by the processes of one machine."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from inference_service.sql import sqlite_file, urls
from inference_service.sql.database import Conflict, Expressions, Values
from inference_service.sql.values import stored_time

_EXPRESSIONS = Expressions(
    decimal_sum=lambda column: f"decimal_sum({column})",
    day=lambda column: f"substr({column}, 1, 10)",
    hour=lambda column: f"substr({column}, 1, 13)",
    epoch=lambda column: f"((julianday({column}) - 2440587.5) * 86400.0)",
    tag_pairs=lambda column: f"json_each({column}) AS tag",
    for_update="",
)


class SqliteDriver:
    """The file at `path`, or a database in memory without one."""

    dialect = "sqlite"
    expressions = _EXPRESSIONS

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.shown = "sqlite://" if path is None else urls.of_sqlite(path)

    def connect(self) -> sqlite3.Connection:
        """A connection that any one thread may use, with `decimal_sum`."""
        if self.path is None:
            connection = sqlite_file.empty()
        else:
            try:
                connection = sqlite_file.connect(self.path)
            except OSError as error:
                raise sqlite_file.unusable(self.path, error) from error
        connection.create_aggregate("decimal_sum", 1, DecimalSum)  # type: ignore[arg-type]  # NULL may be the result
        return connection

    def begin(self, connection: sqlite3.Connection, *, writing: bool) -> None:
        """A transaction that writes takes the lock at once: one that waits for it later could not be resumed."""
        connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")

    def translated(self, statement: str) -> str:
        """`:name` is SQLite's own style."""
        return statement

    def adapted(self, values: Values) -> Values:
        """Decimals and times as text."""
        return {name: _adapted(value) for name, value in values.items()}

    def failure(self, error: Exception) -> Exception | None:
        """See `Driver.failure`."""
        if isinstance(error, sqlite3.IntegrityError):
            return Conflict(str(error))
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError | sqlite3.DataError):
            return None
        if isinstance(error, sqlite3.DatabaseError) and self.path is not None:
            return sqlite_file.unusable(self.path, error)
        return None


class DecimalSum:
    """SQLite's own SUM would go through binary fractions."""

    def __init__(self) -> None:
        self.total = Decimal(0)
        self.any = False

    def step(self, value: Any) -> None:
        """Add one; NULL is no value."""
        if value is not None:
            self.total += Decimal(value)
            self.any = True

    def finalize(self) -> str | None:
        """The sum as text, NULL of nothing."""
        return format(self.total, "f") if self.any else None


def _adapted(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return stored_time(value)
    return value

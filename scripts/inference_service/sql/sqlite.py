"""SQLite: one file, shared by the processes of one machine."""

from __future__ import annotations

import json
import sqlite3
from array import array
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
    nearest_ranks=lambda column, percents: f"nearest_ranks({column}, '{','.join(map(str, percents))}')",
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
        """A connection that any one thread may use, with our aggregates."""
        if self.path is None:
            connection = sqlite_file.empty()
        else:
            try:
                connection = sqlite_file.connect(self.path)
            except OSError as error:
                raise sqlite_file.unusable(self.path, error) from error
        # The type of an aggregate in typeshed knows no NULL as a result.
        connection.create_aggregate("decimal_sum", 1, DecimalSum)  # type: ignore[arg-type]
        connection.create_aggregate("nearest_ranks", 2, NearestRanks)  # type: ignore[arg-type]
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


class NearestRanks:
    """Percentiles by nearest rank, as JSON: SQLite has no function for them, and sorting by groups is slower."""

    def __init__(self) -> None:
        self.values = array("d")
        self.percents = ""

    def step(self, value: float | None, percents: str) -> None:
        """Add one; NULL is no value."""
        if value is not None:
            self.values.append(value)
            self.percents = percents

    def finalize(self) -> str | None:
        """The percentiles in the order that they were asked for in, NULL of nothing."""
        if not self.values:
            return None
        ascending = sorted(self.values)
        # Integers: a product of binary fractions may be just above a rank.
        ranks = (-(-int(percent) * len(ascending) // 100) for percent in self.percents.split(","))
        return json.dumps([ascending[max(rank, 1) - 1] for rank in ranks])


def _adapted(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return stored_time(value)
    return value

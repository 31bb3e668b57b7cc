"""A database as its users see it, and the pool of connections behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from inference_service.errors import ToolError

Values = Mapping[str, Any]
_NOTHING: Values = {}
_KEPT_CONNECTIONS = 4


class DatabaseUnusable(ToolError):
    """The database cannot be reached, opened, read or written; it may become so again."""


class Collision(DatabaseUnusable):
    """Two transactions waited for each other, and this one was rolled back: do it again, at once."""


class Conflict(Exception):
    """A statement broke a constraint: there is such a row already, or it refers to one that does not exist."""


@dataclass(frozen=True)
class Expressions:
    """What the dialects spell differently, each a function from a column's name to SQL.

    `decimal_sum`: the exact sum (read it with `as_decimal`). `day`, `hour`: a time's day `2026-01-31` and hour
    `2026-01-31T09` in UTC, as text. `epoch`: a time's seconds since 1970, fractions included. `nearest_ranks`:
    the percentiles of a column's values, given in percent (read them with `as_numbers`). `tag_pairs`: a join that
    gives one row `(key, value)` named `tag` for each tag of a request. `for_update` ends a SELECT whose rows the
    transaction is about to change; a writing transaction of SQLite has all of them anyway.
    """

    decimal_sum: Callable[[str], str]
    day: Callable[[str], str]
    hour: Callable[[str], str]
    epoch: Callable[[str], str]
    nearest_ranks: Callable[[str, Sequence[int]], str]
    tag_pairs: Callable[[str], str]
    for_update: str


class Driver(Protocol):
    """What a dialect has to bring."""

    dialect: str
    shown: str
    expressions: Expressions

    def connect(self) -> Any:
        """A new connection in autocommit mode whose schema is up to date."""

    def begin(self, connection: Any, *, writing: bool) -> None:
        """Begin a transaction; a reading one sees one moment."""

    def translated(self, statement: str) -> str:
        """The statement in this dialect's parameter style."""

    def adapted(self, values: Values) -> Values:
        """The values as the driver takes them."""

    def failure(self, error: Exception) -> Exception | None:
        """What an exception of the driver means to our callers: DatabaseUnusable, Conflict, or None for a mistake in
        the statement or its values, which stays what it is."""


class Cursor:
    """Statements inside one transaction. Rows are tuples."""

    def __init__(self, driver: Driver, raw: Any) -> None:
        self._driver = driver
        self.raw = raw
        """The driver's own cursor, for what one dialect alone can do."""

    def execute(self, statement: str, values: Values = _NOTHING) -> Cursor:
        """Run one statement; the cursor itself, to read its rows from."""
        self.raw.execute(self._driver.translated(statement), self._driver.adapted(values))
        return self

    def executemany(self, statement: str, rows: Sequence[Values]) -> None:
        """Run one statement once for each of the rows."""
        self.raw.executemany(self._driver.translated(statement), [self._driver.adapted(values) for values in rows])

    @property
    def rowcount(self) -> int:
        """How many rows the last INSERT, UPDATE or DELETE changed."""
        return int(self.raw.rowcount)

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, None after the last."""
        row: tuple[Any, ...] | None = self.raw.fetchone()
        return row

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows that are left."""
        rows: list[tuple[Any, ...]] = self.raw.fetchall()
        return rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.raw)

    def documents(self) -> list[dict[str, Any]]:
        """The rows that are left, each by its columns' names."""
        names = [column[0] for column in self.raw.description]
        return [dict(zip(names, row)) for row in self.raw]  # noqa: B905 - there is one value for each name


class Database:
    """Many threads may use it at once, each transaction on a connection of its own. Making it does no I/O."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self.dialect = driver.dialect
        self.shown = driver.shown
        """The URL, without a password."""
        self.expressions = driver.expressions

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """A transaction that is committed at the end of the block, or rolled back by an exception.

        In SQLite it is the only one that writes from its beginning on; in PostgreSQL it is READ COMMITTED.

        Raises:
            DatabaseUnusable: the database cannot be used; nothing of the transaction is kept. After a commit that
                failed in PostgreSQL because the connection broke, it is not known whether it is.
            Conflict: a constraint was broken.
        """
        with self._transaction(writing=True) as cursor:
            yield cursor

    @contextmanager
    def snapshot(self) -> Iterator[Cursor]:
        """The same for reading alone: all statements see the database as it is at the first one. Blocks no writer."""
        with self._transaction(writing=False) as cursor:
            yield cursor

    def is_failing(self, error: Exception) -> bool:
        """Whether an exception inside a transaction says that the database cannot be used."""
        return isinstance(error, DatabaseUnusable) or isinstance(self._driver.failure(error), DatabaseUnusable)

    def close(self) -> None:
        """Close the connections that nobody uses. The database may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _transaction(self, *, writing: bool) -> Iterator[Cursor]:
        connection = None
        try:
            connection = self._begun(writing)
            raw = connection.cursor()
            yield Cursor(self._driver, raw)
            raw.execute("COMMIT")
        except BaseException as error:
            if connection is not None:
                # A connection that an error or an interrupt left in an unknown state is not used again.
                with suppress(Exception):
                    connection.rollback()
                with suppress(Exception):
                    connection.close()
            meaning = self._driver.failure(error) if isinstance(error, Exception) else None
            if meaning is None:
                raise
            raise meaning from error
        with self._lock:
            if len(self._idle) < _KEPT_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _begun(self, writing: bool) -> Any:
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            try:
                self._driver.begin(kept, writing=writing)
                return kept
            except Exception:
                # The server may have been restarted since; that is no reason to fail.
                with suppress(Exception):
                    kept.close()
        connection = self._driver.connect()
        try:
            self._driver.begin(connection, writing=writing)
        except BaseException:
            connection.close()
            raise
        return connection

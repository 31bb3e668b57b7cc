"""PostgreSQL by psycopg 3, for several gateways that share callers, budgets and the log.

The password comes from the URL, PGPASSWORD or ~/.pgpass, and is in no message.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import psycopg

from inference_service.errors import BadInput
from inference_service.sql import migrations, urls
from inference_service.sql.database import Collision, Conflict, DatabaseUnusable, Expressions, Values

_EXPRESSIONS = Expressions(
    decimal_sum=lambda column: f"SUM({column})",
    day=lambda column: f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    hour=lambda column: f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24')",
    epoch=lambda column: f"EXTRACT(EPOCH FROM {column})::float8",
    nearest_ranks=lambda column, percents: (
        f"percentile_disc(ARRAY[{', '.join(str(percent / 100) for percent in percents)}])"
        f" WITHIN GROUP (ORDER BY {column})"
    ),
    tag_pairs=lambda column: f"jsonb_each_text({column}) AS tag",
    for_update=" FOR UPDATE",
)

# Any constant that nobody else uses for an advisory lock of this database: "tao-inf" as a number.
_MIGRATION_LOCK = int.from_bytes(b"tao-inf", "big")

_CONNECTING: dict[str, Any] = {
    "connect_timeout": 5,  # seconds
    "tcp_user_timeout": 10_000,  # milliseconds until a server that acknowledges nothing is given up
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "application_name": "tao-inference-gateway",
    # Of a database without an encoding (SQL_ASCII, what initdb makes in the C locale) psycopg gives bytes for texts.
    "client_encoding": "UTF8",
}

# Quoted text and casts may hold a colon that begins no parameter; a percent sign is psycopg's own.
_TOKENS = re.compile(r"'(?:[^']|'')*'|::|:([A-Za-z_][A-Za-z0-9_]*)|%")


class PostgresqlDriver:
    """The server of one URL."""

    dialect = "postgresql"
    expressions = _EXPRESSIONS

    def __init__(self, url: str) -> None:
        self.shown = urls.without_password(url)
        self._secrets = urls.passwords(url)
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:
            # libpq's own message quotes what it does not understand, which may be the password.
            raise BadInput(
                "invalid_database_url",
                f"libpq does not understand the database URL {self.shown}",
                "percent-encode what has a meaning in URLs (/ ? # @ :) in the user's name and the password",
            ) from None
        self._connection_info = psycopg.conninfo.make_conninfo(**{**_CONNECTING, **given})

    def connect(self) -> Any:
        """A connection whose schema is up to date."""
        connection = psycopg.connect(self._connection_info, autocommit=True)
        try:
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def begin(self, connection: Any, *, writing: bool) -> None:
        """A transaction that reads sees one moment."""
        connection.execute("BEGIN" if writing else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def translated(self, statement: str) -> str:
        """`:name` as `%(name)s`."""
        return _translated(statement)

    def adapted(self, values: Values) -> Values:
        """psycopg knows decimals and times."""
        return values

    def failure(self, error: Exception) -> Exception | None:
        """See `Driver.failure`."""
        if isinstance(error, psycopg.errors.IntegrityError):
            return Conflict(self._without_secrets(error))
        if isinstance(error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
            return Collision("database_busy", self._without_secrets(error), "run it again")
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
            return self._unusable(error)
        # What the server does not let this user do, e.g. make tables.
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return self._unusable(error)
        return None

    def _unusable(self, error: Exception) -> DatabaseUnusable:
        message = self._without_secrets(error)
        if "password" in message:
            fix = "export PGPASSWORD=…, or put the password into ~/.pgpass"
        elif "permission denied" in message:
            fix = "give this user the right to create tables in the schema, or use another user"
        else:
            fix = f"see whether it answers: psql '{self.shown}' -c 'SELECT 1'"
        return DatabaseUnusable("database_unusable", f"the database {self.shown} cannot be used: {message}", fix)

    def _without_secrets(self, error: Exception) -> str:
        message = " ".join(str(error).split())
        for secret in sorted(self._secrets, key=len, reverse=True):
            message = message.replace(secret, "[redacted]")
        return message


@functools.lru_cache(maxsize=512)
def _translated(statement: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        return f"%({match[1]})s" if match[1] else match[0].replace("%", "%%")

    return _TOKENS.sub(replaced, statement)


def _migrate(connection: Any) -> None:
    if _version(connection) >= len(migrations.MIGRATIONS):
        return
    with connection.transaction():
        # Processes that start at once do this one after the other; the lock ends with the transaction.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        # Making the table looks for it anew; asking for its name would answer from before the lock.
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL)"
        )
        done = _newest(connection)
        for number, migration in enumerate(migrations.MIGRATIONS[done:], start=done + 1):
            for statement in migration.postgresql:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version VALUES (%s, now())", (number,))


def _version(connection: Any) -> int:
    if connection.execute("SELECT to_regclass('schema_version')").fetchone() == (None,):
        return 0
    return _newest(connection)


def _newest(connection: Any) -> int:
    (newest,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(newest or 0)

"""The tables of callers and of what they used; the statements are the same in SQLite and PostgreSQL.

`allowances.used` of a minute is what was handed out to gateways; of a day or a month what was spent, in nano-USD, as
the rows of the request log say. `leases` is what a gateway (a holder) may still spend of a day or a month without
asking again: its `amount` goes down as its rows arrive, its `granted` does not. A holder's leases count while it lives.

This is a released step of the schema (sql/migrations.py): it is never edited, a change is a new step.
"""

STATEMENTS = (
    """
    CREATE TABLE callers (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        team TEXT,
        project TEXT,
        admin SMALLINT NOT NULL,
        disabled SMALLINT NOT NULL,
        allowed_models TEXT,
        requests_per_minute BIGINT,
        tokens_per_minute BIGINT,
        nano_usd_per_day BIGINT,
        nano_usd_per_month BIGINT,
        created_at BIGINT NOT NULL
    )
    """,
    """
    CREATE TABLE caller_keys (
        key_id TEXT NOT NULL PRIMARY KEY,
        caller_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        expires_at BIGINT
    )
    """,
    "CREATE INDEX caller_keys_caller ON caller_keys (caller_id)",
    # One row, counted up by every change of the two tables above: gateways look at it each second.
    "CREATE TABLE callers_version (version BIGINT NOT NULL)",
    "INSERT INTO callers_version VALUES (0)",
    """
    CREATE TABLE allowances (
        caller_id TEXT NOT NULL,
        quantity TEXT NOT NULL,
        window_start BIGINT NOT NULL,
        used BIGINT NOT NULL,
        PRIMARY KEY (caller_id, quantity, window_start)
    )
    """,
    """
    CREATE TABLE leases (
        caller_id TEXT NOT NULL,
        quantity TEXT NOT NULL,
        window_start BIGINT NOT NULL,
        holder TEXT NOT NULL,
        amount BIGINT NOT NULL,
        granted BIGINT NOT NULL,
        PRIMARY KEY (caller_id, quantity, window_start, holder)
    )
    """,
    # `clock` says whose `ticks` they are (this boot of this machine, or the database server): seconds that no step of a
    # wall clock changes. Who has another clock goes by the wall clock, `expires_at`.
    """
    CREATE TABLE lease_holders (
        holder TEXT NOT NULL PRIMARY KEY,
        clock TEXT NOT NULL,
        expires_ticks DOUBLE PRECISION NOT NULL,
        expires_at DOUBLE PRECISION NOT NULL
    )
    """,
    # What each caller used each day, so that it can ask often: added up with the rows, and kept when they are deleted.
    # `day` is when it began; `model` is empty for requests that reached none.
    """
    CREATE TABLE caller_usage (
        caller_id TEXT NOT NULL,
        day BIGINT NOT NULL,
        model TEXT NOT NULL,
        requests BIGINT NOT NULL,
        errors BIGINT NOT NULL,
        input_tokens BIGINT NOT NULL,
        output_tokens BIGINT NOT NULL,
        cached_tokens BIGINT NOT NULL,
        nano_usd BIGINT NOT NULL,
        unpriced BIGINT NOT NULL,
        PRIMARY KEY (caller_id, day, model)
    )
    """,
)

"""How gateways share a caller's limits: what each takes from the database before it gives it out, and gives back.

The invariant of a budget, at every commit: used + what the holders that live may still spend <= limit. A gateway admits
requests only out of what it took, so however many there are, and whenever one dies, the sum stays within the limit.
Only what a holder gave out before it was taken for dead can come on top: its rows are counted whenever they arrive.

A minute is shared more simply: what is taken is used, and what a dead gateway took is lost for the rest of the minute.

All statements of one key (caller, quantity, window) run under the lock of its row in `allowances`, taken in one order,
so that no two transactions wait for each other. Every function is one transaction's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference_service.callers.clocks import Now
from inference_service.callers.windows import BY_NAME, end_of
from inference_service.sql import Cursor, Database

LEASE_SECONDS = 45.0
"""How long a holder counts as alive after its last sign of life."""

# The next taker gets a small slice of what is left, so that the others find something too.
_SLICES = 16
_FORGOTTEN_AFTER = 3600.0


Key = tuple[str, str, int]
"""caller_id, quantity and window_start of an allowance."""

Return = tuple[Key, int]
"""What is given back of a minute."""


@dataclass(frozen=True)
class Ask:
    """What a gateway wants of one allowance: at least `least`, otherwise nothing (it helps no request); `want` if it is
    there; and up to `ahead` more as far as that is a small part of what is left. `known` is what it was granted before,
    `debt` what it gave out beyond that. A `want` of 0 grants nothing."""

    caller_id: str
    quantity: str
    window_start: int
    limit: int
    known: int
    debt: int
    least: int
    want: int
    ahead: int


@dataclass(frozen=True)
class Grant:
    """What it got. `left`: what is left for others or later; `used`: what is used, leases apart; `granted`:
    all that was granted and not given up, for the next ask's `known`."""

    amount: int
    left: int
    used: int
    granted: int


def renew(cursor: Cursor, holder: str, now: Now) -> bool:
    """A holder's sign of life. False if it had been taken for dead: then others may have taken what it held."""
    row = cursor.execute(
        "SELECT clock, expires_ticks, expires_at FROM lease_holders WHERE holder = :holder", {"holder": holder}
    ).fetchone()
    cursor.execute(
        """
        INSERT INTO lease_holders (holder, clock, expires_ticks, expires_at)
        VALUES (:holder, :clock, :expires_ticks, :expires_at)
        ON CONFLICT (holder) DO UPDATE SET
            clock = excluded.clock, expires_ticks = excluded.expires_ticks, expires_at = excluded.expires_at
        """,
        {
            "holder": holder,
            "clock": now.clock,
            "expires_ticks": now.ticks + LEASE_SECONDS,
            "expires_at": now.wall + LEASE_SECONDS,
        },
    )
    if row is None:
        return False
    clock, expires_ticks, expires_at = row
    return bool(expires_ticks > now.ticks if clock == now.clock else expires_at > now.wall)


def take(cursor: Cursor, holder: str, now: Now, asks: Sequence[Ask], returns: Sequence[Return] = ()) -> list[Grant]:
    """Take back what is returned of minutes, and grant what the limits allow. The holder has to be alive (`renew`).

    What was leased needs no return: a holder that knows of less than it was granted has given up the rest.
    """
    keys = {_key_of(ask) for ask in asks} | {key for key, _ in returns}
    for key in sorted(keys):
        _lock(cursor, key)
    for key, amount in returns:
        _add_used(cursor, key, -amount)
    grants = []
    for ask in asks:
        grant = _lease if BY_NAME[ask.quantity].is_money else _hand_out
        grants.append(grant(cursor, holder, now, ask, used(cursor, _key_of(ask))))
    return grants


def forget(database: Database, now: Now) -> None:
    """Delete what nobody needs: minutes that are over, leases of holders long dead or of windows long over."""
    cutoff = now.wall - _FORGOTTEN_AFTER
    with database.transaction() as cursor:
        cursor.execute(
            "DELETE FROM allowances WHERE quantity IN ('requests_per_minute', 'tokens_per_minute')"
            " AND window_start < :cutoff",
            {"cutoff": int(cutoff)},
        )
    with database.snapshot() as cursor:
        leases = cursor.execute(
            """
            SELECT l.caller_id, l.quantity, l.window_start, l.holder, h.expires_at
            FROM leases l LEFT JOIN lease_holders h ON h.holder = l.holder
            """
        ).fetchall()
    for caller_id, quantity, start, holder, expires_at in leases:
        if end_of(BY_NAME[quantity].window, start) < cutoff or expires_at is None or expires_at < cutoff:
            key = (caller_id, quantity, start)
            with database.transaction() as cursor:
                _lock(cursor, key)
                cursor.execute(
                    f"DELETE FROM leases WHERE {_KEY} AND holder = :holder",  # noqa: S608
                    {**_values(key), "holder": holder},
                )
    with database.transaction() as cursor:
        cursor.execute(
            "DELETE FROM lease_holders WHERE expires_at < :cutoff"
            " AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.holder = lease_holders.holder)",
            {"cutoff": cutoff},
        )


def held(cursor: Cursor, now: Now, key: Key, besides: str = "") -> int:
    """What holders that live (`besides` one of them) may still spend of a budget."""
    cursor.execute(
        """
        SELECT CAST(COALESCE(SUM(l.amount), 0) AS BIGINT)
        FROM leases l JOIN lease_holders h ON h.holder = l.holder
        WHERE l.caller_id = :caller_id AND l.quantity = :quantity AND l.window_start = :window_start
            AND l.holder <> :besides AND l.amount > 0
            AND ((h.clock = :clock AND h.expires_ticks > :ticks) OR (h.clock <> :clock AND h.expires_at > :wall))
        """,
        {**_values(key), "besides": besides, "clock": now.clock, "ticks": now.ticks, "wall": now.wall},
    )
    (amount,) = next(iter(cursor))
    return int(amount)


def used(cursor: Cursor, key: Key) -> int:
    """What is used of an allowance."""
    row = cursor.execute(f"SELECT used FROM allowances WHERE {_KEY}", _values(key)).fetchone()  # noqa: S608
    return int(row[0]) if row else 0


_KEY = "caller_id = :caller_id AND quantity = :quantity AND window_start = :window_start"


def _key_of(ask: Ask) -> Key:
    return (ask.caller_id, ask.quantity, ask.window_start)


def _values(key: Key) -> dict[str, Any]:
    caller_id, quantity, window_start = key
    return {"caller_id": caller_id, "quantity": quantity, "window_start": window_start}


def _lock(cursor: Cursor, key: Key) -> None:
    # An update that changes nothing locks the row, which an insert that does nothing would not.
    cursor.execute(
        """
        INSERT INTO allowances (caller_id, quantity, window_start, used)
        VALUES (:caller_id, :quantity, :window_start, 0)
        ON CONFLICT (caller_id, quantity, window_start) DO UPDATE SET used = allowances.used
        """,
        _values(key),
    )


def _add_used(cursor: Cursor, key: Key, amount: int) -> None:
    cursor.execute(
        f"UPDATE allowances SET used = used + :amount WHERE {_KEY}",  # noqa: S608
        {**_values(key), "amount": amount},
    )


def _hand_out(cursor: Cursor, _holder: str, _now: Now, ask: Ask, used_before: int) -> Grant:
    left = ask.limit - used_before
    amount = _granted(ask, left)
    if amount:
        _add_used(cursor, _key_of(ask), amount)
    return Grant(amount, left - amount, used_before + amount, ask.known + amount)


def _lease(cursor: Cursor, holder: str, now: Now, ask: Ask, used_before: int) -> Grant:
    key = {**_values(_key_of(ask)), "holder": holder}
    row = cursor.execute(f"SELECT amount, granted FROM leases WHERE {_KEY} AND holder = :holder", key).fetchone()  # noqa: S608
    mine, granted = row or (0, 0)
    # The holder knows of less: it gave something up, or a grant never reached it. Either way nobody will spend it.
    given_up = max(0, granted - ask.known)
    # Below zero it is a debt, if the holder knows of it; else the lease is one that it had forgotten.
    mine = max(mine - given_up, -ask.debt)
    of_others = held(cursor, now, _key_of(ask), besides=holder)
    # Who is in debt pays that first out of what it gets.
    left = ask.limit - used_before - of_others - mine
    amount = _granted(ask, left)
    if amount or given_up or ask.debt:
        cursor.execute(
            """
            INSERT INTO leases (caller_id, quantity, window_start, holder, amount, granted)
            VALUES (:caller_id, :quantity, :window_start, :holder, :amount, :granted)
            ON CONFLICT (caller_id, quantity, window_start, holder) DO UPDATE SET
                amount = excluded.amount, granted = excluded.granted
            """,
            {**key, "amount": mine + amount, "granted": granted - given_up + amount},
        )
    return Grant(amount, left - amount, used_before, granted - given_up + amount)


def _granted(ask: Ask, left: int) -> int:
    if not ask.want or left < max(1, ask.least):
        return 0
    return min(left, max(ask.want, min(ask.want + ask.ahead, left // _SLICES)))

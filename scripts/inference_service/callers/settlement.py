"""What the rows of the request log say was spent: taken from the lease it was spent from, and counted as used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from inference_service.callers import money, windows
from inference_service.request_log.rows import RequestRow
from inference_service.sql import Cursor


def settle(cursor: Cursor, rows: Sequence[RequestRow]) -> None:
    """Count what these rows cost, inside the transaction that inserts them; each row exactly once.

    `row.gateway` has to be the `holder` of the Accounts that admitted the request, `row.time` the moment that was given
    to `try_admit`. Rows of a holder that is dead are counted like any other.
    """
    spent: dict[tuple[str, str, int], int] = defaultdict(int)
    spent_by: dict[tuple[str, str, int, str], int] = defaultdict(int)
    for row in rows:
        if row.caller_id is None or not row.cost_usd:
            continue
        cost = money.nano_usd(row.cost_usd)
        for quantity in windows.BUDGETS:
            start = windows.start_of(quantity.window, row.time)
            spent[row.caller_id, quantity.name, start] += cost
            spent_by[row.caller_id, quantity.name, start, row.gateway] += cost
    if not spent:
        return
    # In one order, so that transactions that touch the same rows wait for each other in turn.
    cursor.executemany(
        """
        INSERT INTO allowances (caller_id, quantity, window_start, used)
        VALUES (:caller_id, :quantity, :window_start, :cost)
        ON CONFLICT (caller_id, quantity, window_start) DO UPDATE SET used = allowances.used + excluded.used
        """,
        [
            {"caller_id": caller_id, "quantity": quantity, "window_start": start, "cost": cost}
            for (caller_id, quantity, start), cost in sorted(spent.items())
        ],
    )
    cursor.executemany(
        """
        UPDATE leases SET amount = amount - :cost
        WHERE caller_id = :caller_id AND quantity = :quantity AND window_start = :window_start AND holder = :holder
        """,
        [
            {"caller_id": caller_id, "quantity": quantity, "window_start": start, "holder": holder, "cost": cost}
            for (caller_id, quantity, start, holder), cost in sorted(spent_by.items())
        ],
    )

"""What the rows of the request log say was used: taken from the lease it was spent from, and counted for its caller."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from inference_service.callers import money, windows
from inference_service.request_log.rows import RequestRow
from inference_service.sql import Cursor


def settle(cursor: Cursor, rows: Sequence[RequestRow]) -> None:
    """Count what these rows used, inside the transaction that inserts them; each row exactly once.

    `row.gateway` has to be the `holder` of the Accounts that admitted the request, `row.time` the moment that was given
    to `try_admit`. Rows of a holder that is dead are counted like any other.
    """
    # Each in one order, so that transactions that touch the same rows wait for each other in turn.
    spent: dict[tuple[str, str, int], int] = defaultdict(int)
    spent_by: dict[tuple[str, str, int, str], int] = defaultdict(int)
    used: dict[tuple[str, int, str], _Used] = defaultdict(_Used)
    for row in rows:
        if row.caller_id is None:
            continue
        cost = money.nano_usd(row.cost_usd) if row.cost_usd else 0
        day = windows.start_of("day", row.time)
        # A model that was asked for and does not exist has no service: whatever callers write would have a line.
        used[row.caller_id, day, (row.model or "") if row.network_arch else ""].add(row, cost)
        if cost:
            for quantity, start in ((windows.DAY, day), (windows.MONTH, windows.start_of("month", row.time))):
                spent[row.caller_id, quantity.name, start] += cost
                spent_by[row.caller_id, quantity.name, start, row.gateway] += cost
    _count_spent(cursor, spent)
    _reduce_leases(cursor, spent_by)
    _count_used(cursor, used)


@dataclass
class _Used:
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    nano_usd: int = 0
    unpriced: int = 0

    def add(self, row: RequestRow, cost: int) -> None:
        self.requests += 1
        self.errors += row.error_type is not None or (row.http_status or 0) >= 400
        self.input_tokens += row.input_tokens or 0
        self.output_tokens += row.output_tokens or 0
        self.cached_tokens += row.cached_tokens or 0
        self.nano_usd += cost
        self.unpriced += row.cost_usd is None


def _count_spent(cursor: Cursor, spent: dict[tuple[str, str, int], int]) -> None:
    if spent:
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


def _reduce_leases(cursor: Cursor, spent_by: dict[tuple[str, str, int, str], int]) -> None:
    if spent_by:
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


def _count_used(cursor: Cursor, used: dict[tuple[str, int, str], _Used]) -> None:
    if used:
        cursor.executemany(
            """
            INSERT INTO caller_usage (caller_id, day, model, requests, errors, input_tokens, output_tokens,
                cached_tokens, nano_usd, unpriced)
            VALUES (:caller_id, :day, :model, :requests, :errors, :input_tokens, :output_tokens,
                :cached_tokens, :nano_usd, :unpriced)
            ON CONFLICT (caller_id, day, model) DO UPDATE SET
                requests = caller_usage.requests + excluded.requests,
                errors = caller_usage.errors + excluded.errors,
                input_tokens = caller_usage.input_tokens + excluded.input_tokens,
                output_tokens = caller_usage.output_tokens + excluded.output_tokens,
                cached_tokens = caller_usage.cached_tokens + excluded.cached_tokens,
                nano_usd = caller_usage.nano_usd + excluded.nano_usd,
                unpriced = caller_usage.unpriced + excluded.unpriced
            """,
            [
                {"caller_id": caller_id, "day": day, "model": model, **vars(counts)}
                for (caller_id, day, model), counts in sorted(used.items(), key=lambda item: item[0])
            ],
        )

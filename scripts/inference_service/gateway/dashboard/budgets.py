"""Callers' budgets with what is left of them, as the database knows it."""

from __future__ import annotations

from typing import Any

from inference_service.callers import store
from inference_service.callers.windows import BUDGETS, end_of, start_of
from inference_service.sql import Cursor

_NANO = 1_000_000_000


def budgets(cursor: Cursor, now: float) -> list[dict[str, Any]]:
    """One document per budget (a caller may have one per day and one per month), the fullest first. Money in USD."""
    starts = {quantity.name: start_of(quantity.window, now) for quantity in BUDGETS}
    used = {
        (caller_id, quantity): int(nano_usd)
        for caller_id, quantity, window_start, nano_usd in cursor.execute(
            "SELECT caller_id, quantity, window_start, used FROM allowances WHERE window_start IN (:day, :month)",
            {"day": starts[BUDGETS[0].name], "month": starts[BUDGETS[1].name]},
        )
        if starts.get(quantity) == window_start
    }
    found = []
    for stored in store.read(cursor):
        for quantity in BUDGETS:
            limit = quantity.limit_of(stored.caller.limits)
            if limit is None:
                continue
            spent = used.get((stored.caller.id, quantity.name), 0)
            found.append(
                {
                    "caller": stored.caller.name,
                    "team": stored.caller.team,
                    "window": quantity.window,
                    "limit_usd": limit / _NANO,
                    "used_usd": spent / _NANO,
                    "left_usd": max(limit - spent, 0) / _NANO,
                    "used_share": spent / limit if limit else 1.0,
                    "resets_at": end_of(quantity.window, starts[quantity.name]),
                    "disabled": stored.disabled,
                }
            )
    return sorted(found, key=lambda budget: (-budget["used_share"], budget["caller"], budget["window"]))

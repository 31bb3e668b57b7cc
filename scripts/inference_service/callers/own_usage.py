"""What a caller may know about itself: what it used today and this month, by model, and what its limits leave it."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

from inference_service.callers import allowances, clocks, money, windows
from inference_service.callers.caller import Caller
from inference_service.sql import Cursor, Database

_COUNTS = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "nano_usd", "unpriced")


def document(database: Database, caller: Caller, at: float | None = None) -> dict[str, Any]:
    """The answer to GET /v1/usage, as of now (`at`: seconds since 1970). Does I/O.

    Money is an exact decimal of USD, each request rounded up to nano-USD, as budgets count it. A request whose cost is
    not known is in `unpriced` and in no cost. Days and months are those of UTC. What is `set_aside` is held for
    requests under way, or by gateways for the next ones; what is not used goes back. Of a minute, that is in `used`.

    Raises:
        DatabaseUnusable: the database cannot be used.
    """
    at = time.time() if at is None else at
    with database.snapshot() as cursor:
        return {
            "object": "usage",
            "caller": caller.name,
            "team": caller.team,
            "project": caller.project,
            "allowed_models": None if caller.allowed_models is None else sorted(caller.allowed_models),
            "today": _used_since(cursor, caller, windows.start_of("day", at)),
            "this_month": _used_since(cursor, caller, windows.start_of("month", at)),
            "limits": _limits(cursor, database, caller, at),
        }


def _used_since(cursor: Cursor, caller: Caller, since: int) -> dict[str, Any]:
    rows = cursor.execute(
        f"""
        SELECT model, {", ".join(f"CAST(SUM({count}) AS BIGINT) AS {count}" for count in _COUNTS)}
        FROM caller_usage WHERE caller_id = :caller_id AND day >= :since
        GROUP BY model ORDER BY nano_usd DESC, requests DESC, model
        """,  # noqa: S608
        {"caller_id": caller.id, "since": since},
    ).fetchall()
    totals = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)] or [0] * len(_COUNTS)
    return {
        "since": _moment(since),
        **_counts(totals),
        "by_model": [{"model": row[0] or None, **_counts(row[1:])} for row in rows],
    }


def _counts(values: Any) -> dict[str, Any]:
    counts = dict(zip(_COUNTS, values, strict=True))
    counts["cost_usd"] = money.as_usd(counts.pop("nano_usd"))
    return counts


def _limits(cursor: Cursor, database: Database, caller: Caller, at: float) -> list[dict[str, Any]]:
    now = clocks.now(cursor, database.dialect, lambda: at, clocks.ticks)
    limits = []
    for quantity in windows.QUANTITIES:
        limit = quantity.limit_of(caller.limits)
        if limit is None:
            continue
        start = windows.start_of(quantity.window, at)
        key = (caller.id, quantity.name, start)
        used = allowances.used(cursor, key)
        held = allowances.held(cursor, now, key) if quantity.is_money else 0
        show = money.as_usd if quantity.is_money else int
        limits.append(
            {
                "limit": quantity.name,
                "value": show(limit),
                "used": show(used),
                "set_aside": show(held),
                "left": show(max(0, limit - used - held)),
                "resets_at": _moment(windows.end_of(quantity.window, start)),
            }
        )
    return limits


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

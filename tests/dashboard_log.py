"""A request log such as a busy week leaves: several teams, Claude and a model of our own, a bad quarter of an hour."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from inference_service import sql
from inference_service.callers import store
from inference_service.callers.caller import Limits
from inference_service.callers.windows import start_of

# Name, team, how much of the traffic, budget per day and month in USD.
CALLERS = (
    ("support-bot", "support", 30, 20, None),
    ("search-answers", "search", 24, 9, 500),
    ("nightly-summaries", "data", 14, None, 150),
    ("code-review", "platform", 12, 6, None),
    ("playground", "research", 9, 4, None),
    ("mail-triage", "support", 7, None, None),
    ("vision-qa", "research", 4, None, None),
)
# Id, network arch, route, weight, USD per million tokens in and out (None: no price), median seconds.
MODELS: tuple[tuple[str, str, str, int, tuple[float, float] | None, float], ...] = (
    ("claude-sonnet-5-5", "claude", "/v1/messages", 40, (2, 10), 2.1),
    ("claude-haiku-4-5", "claude", "/v1/chat/completions", 34, (1, 5), 0.9),
    ("claude-opus-5-5", "claude", "/v1/messages", 12, (4, 20), 4.2),
    ("smollm2", "smollm2", "/v1/chat/completions", 11, (0.02, 0.02), 0.25),
    ("claude-preview-x", "claude", "/v1/messages", 3, None, 3.0),
)
_FAILURES = (
    (429, "rate_limited_tokens"),
    (529, "upstream_overloaded_error"),
    (200, "client_disconnected"),
    (400, "untranslatable"),
    (504, "upstream_timeout"),
)


def fill(
    database: sql.Database, requests: int, days: float = 1.0, now: float | None = None, seed: int = 7
) -> dict[str, str]:
    """Write `requests` rows over the last `days`, and the callers with what they used of their budgets; their keys."""
    now = time.time() if now is None else now
    rows = list(_rows(requests, days, now, random.Random(seed)))
    names = list(rows[0])
    statement = f"INSERT INTO requests ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"
    with database.transaction() as cursor:
        for first in range(0, len(rows), 10_000):
            cursor.executemany(statement, rows[first : first + 10_000])
    return {
        name: add_caller(database, name, team, per_day, per_month, now, rows)
        for name, team, _, per_day, per_month in CALLERS
    }


def add_caller(
    database: sql.Database, name: str, team: str, per_day: int | None, per_month: int | None, now: float, rows: Any = ()
) -> str:
    """Make a caller with budgets in USD, of which it has used what the rows say; its key."""
    nano = 1_000_000_000
    limits = Limits(
        nano_usd_per_day=None if per_day is None else per_day * nano,
        nano_usd_per_month=None if per_month is None else per_month * nano,
    )
    stored, key = store.add(database, store.NewCaller(name=name, team=team, limits=limits))
    with database.transaction() as cursor:
        for quantity, window in (("usd_per_day", "day"), ("usd_per_month", "month")):
            begun = start_of(window, now)
            mine = [
                row for row in rows if row["caller"] == name and row["cost_usd"] and row["time"].timestamp() >= begun
            ]
            cursor.execute(
                "INSERT INTO allowances (caller_id, quantity, window_start, used)"
                " VALUES (:id, :quantity, :begun, :used)",
                {
                    "id": stored.caller.id,
                    "quantity": quantity,
                    "begun": begun,
                    "used": int(sum(row["cost_usd"] for row in mine) * nano),
                },
            )
    return key.api_key


def _rows(requests: int, days: float, now: float, chance: random.Random) -> Iterator[dict[str, Any]]:
    trouble = now - 0.3 * days * 86_400
    for number in range(requests):
        at = _busy_moment(now, days, chance)
        name, team, *_ = chance.choices(CALLERS, [caller[2] for caller in CALLERS])[0]
        model, arch, route, _, price, median = chance.choices(MODELS, [one[3] for one in MODELS])[0]
        bad = abs(at - trouble) < 0.012 * days * 86_400
        status, error = 200, None
        if chance.random() < (0.35 if bad else 0.012):
            status, error = (529, "upstream_overloaded_error") if bad else chance.choice(_FAILURES)
        seconds = median * math.exp(chance.gauss(0, 0.45)) * (2.5 if bad else 1)
        served = status == 200
        tokens_in, tokens_out = int(math.exp(chance.gauss(7.2, 0.9))), int(math.exp(chance.gauss(5.4, 0.8)))
        cost = None
        if not served:
            cost = Decimal(0)
        elif price:
            cost = (Decimal(str(price[0])) * tokens_in + Decimal(str(price[1])) * tokens_out) / 1_000_000
        yield {
            "request_id": f"req_{seed_of(chance)}{number:08x}",
            "time": datetime.fromtimestamp(at, timezone.utc),
            "caller": name,
            "caller_id": f"c_{name}",
            "team": team,
            "network_arch": arch,
            "model": model,
            "route": route,
            "http_status": status,
            "error_type": error,
            "queue_seconds": 0.00002,
            "connect_seconds": 0.0,
            "first_byte_seconds": seconds * 0.2 if served else None,
            "first_token_seconds": seconds * 0.25 if served else None,
            "total_seconds": seconds if served else seconds * 0.05,
            "overhead_seconds": 0.0003,
            "input_tokens": tokens_in if served else None,
            "output_tokens": tokens_out if served else None,
            "cached_tokens": 0 if served else None,
            "cost_usd": cost,
            "priced_by": None if cost is None else "tokens",
            "usage_estimated": error == "client_disconnected",
        }


def seed_of(chance: random.Random) -> str:
    """A part of an id that two fillings do not share."""
    return f"{chance.getrandbits(48):012x}"


def _busy_moment(now: float, days: float, chance: random.Random) -> float:
    """More by day than by night, in UTC."""
    while True:
        at = now - chance.random() * days * 86_400
        by_day = 0.5 - 0.5 * math.cos((at % 86_400) / 86_400 * 2 * math.pi)
        if chance.random() < 0.25 + 0.75 * by_day:
            return at

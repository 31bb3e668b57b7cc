"""What tests of callers share: clocks of the test's own, a database that counts and fails, requests and their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from inference_service.callers import allowances, clocks, settlement, store, windows
from inference_service.callers.accounts import Accounts
from inference_service.callers.caller import Caller, Limits
from inference_service.request_log.rows import RequestRow
from inference_service.sql import Cursor, Database, DatabaseUnusable

NOON = 1_796_040_000.0  # 2026-11-30T12:00:00Z
USD = 1_000_000_000


class Clocks:
    def __init__(self) -> None:
        self.wall = NOON
        self.ticks = 100.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds


class CountingDatabase(Database):
    """Counts its writing transactions, and is down while it is told to be."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._driver)
        self.transactions = 0
        self.down = False

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        self.transactions += 1
        if self.down:
            raise DatabaseUnusable("database_unusable", "nobody answers")
        with super().transaction() as cursor:
            yield cursor


def new_caller(database: Database, limits: Limits, name: str = "web") -> Caller:
    return store.add(database, store.NewCaller(name, limits=limits))[0].caller


def accounts_of(database: Database, clock: Clocks, holder: str = "g1") -> Accounts:
    return Accounts(database, holder, clock=lambda: clock.wall, ticks=lambda: clock.ticks)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work(), 60)

    return asyncio.run(bounded())


async def admit(accounts: Accounts, caller: Caller, tokens: int = 0, nano_usd: int = 0) -> Any:
    return accounts.try_admit(caller, tokens, nano_usd) or await accounts.admit(caller, tokens, nano_usd)


def used_and_held(database: Database, caller: Caller, clock: Clocks, name: str = "usd_per_day") -> tuple[int, int]:
    key = (caller.id, name, windows.start_of(windows.BY_NAME[name].window, clock.wall))
    with database.snapshot() as cursor:
        now = clocks.now(cursor, database.dialect, lambda: clock.wall, lambda: clock.ticks)
        return allowances.used(cursor, key), allowances.held(cursor, now, key)


def row(caller: Caller, clock: Clocks, cost: str, holder: str = "g1", **fields: Any) -> RequestRow:
    return RequestRow(
        "r1", clock.wall, "/v1/messages", caller_id=caller.id, cost_usd=Decimal(cost), gateway=holder, **fields
    )


def settle(database: Database, *rows: RequestRow) -> None:
    with database.transaction() as cursor:
        settlement.settle(cursor, rows)

"""Letting requests in: at once from memory, refused with a reason, each window for itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from callers_support import (
    USD,
    Clocks,
    CountingDatabase,
    accounts_of,
    admit,
    new_caller,
    row,
    run,
    settle,
    used_and_held,
)

from inference_service import sql
from inference_service.callers.accounts import LimitExceeded
from inference_service.callers.caller import Limits


@pytest.fixture
def clock() -> Clocks:
    return Clocks()


@pytest.fixture
def database(tmp_path: Path) -> CountingDatabase:
    return CountingDatabase(sql.open(sql.sqlite_url(tmp_path / "requests.db")))


def test_a_caller_without_limits_never_asks_the_database(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits())
    database.down = True
    before = database.transactions
    admission = accounts_of(database, clock).try_admit(caller, 10**9, 10**15)
    assert admission is not None
    admission.settle(10**9, 10**15)
    assert database.transactions == before


def test_a_refusal_names_limit_value_window_and_when_to_come_back(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(requests_per_minute=2))
    clock.wall += 20

    async def ask() -> LimitExceeded:
        accounts = accounts_of(database, clock)
        await admit(accounts, caller)
        await admit(accounts, caller)
        with pytest.raises(LimitExceeded) as refused:
            await admit(accounts, caller)
        return refused.value

    refusal = run(ask)
    assert refusal.limit == "requests_per_minute"
    assert refusal.error_type == "rate_limited_requests"
    assert refusal.retry_after == pytest.approx(40)
    for part in ("requests_per_minute of web is 2", "this minute (UTC)", "2026-11-30T12:01:00Z"):
        assert part in refusal.message


@pytest.mark.parametrize(
    ("limits", "tokens", "nano_usd", "limit", "error_type"),
    [
        (Limits(tokens_per_minute=100), 101, 0, "tokens_per_minute", "rate_limited_tokens"),
        (Limits(nano_usd_per_day=USD), 0, USD + 1, "usd_per_day", "budget_day"),
        (Limits(nano_usd_per_day=5 * USD, nano_usd_per_month=USD), 0, USD + 1, "usd_per_month", "budget_month"),
    ],
)
def test_a_request_that_is_larger_than_a_limit_is_told_so(
    database: CountingDatabase, clock: Clocks, limits: Limits, tokens: int, nano_usd: int, limit: str, error_type: str
) -> None:
    caller = new_caller(database, limits)

    async def ask() -> LimitExceeded:
        with pytest.raises(LimitExceeded) as refused:
            await admit(accounts_of(database, clock), caller, tokens, nano_usd)
        return refused.value

    refusal = run(ask)
    assert (refusal.limit, refusal.error_type) == (limit, error_type)
    assert "more than the limit ever allows" in refusal.message
    assert used_and_held(database, caller, clock, limit) == (0, 0)


def test_what_was_not_used_is_there_for_the_next_request_at_once(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(tokens_per_minute=100, nano_usd_per_day=USD))

    async def ask() -> int:
        accounts = accounts_of(database, clock)
        first = await admit(accounts, caller, 100, USD)
        with pytest.raises(LimitExceeded):
            await admit(accounts, caller, 1, 1)
        asked = database.transactions
        first.settle(30, USD // 4)
        assert accounts.try_admit(caller, 70, USD * 3 // 4) is not None
        return database.transactions - asked

    assert run(ask) == 0


def test_requests_at_the_same_time_cannot_slip_past_a_budget(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=10 * USD))

    async def ask() -> list[Any]:
        gateways = [accounts_of(database, clock, f"g{number}") for number in range(3)]
        return await asyncio.gather(
            *(admit(gateways[number % 3], caller, 0, USD) for number in range(60)), return_exceptions=True
        )

    answers = run(ask)
    refused = [answer for answer in answers if isinstance(answer, LimitExceeded)]
    assert len(answers) - len(refused) == 10
    assert used_and_held(database, caller, clock) == (0, 10 * USD)


def test_a_caller_over_its_limit_does_not_make_the_database_work(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(requests_per_minute=1))

    async def ask() -> int:
        accounts = accounts_of(database, clock)
        await admit(accounts, caller)
        with pytest.raises(LimitExceeded):
            await admit(accounts, caller)
        asked = database.transactions
        for _ in range(200):
            with pytest.raises(LimitExceeded):
                await admit(accounts, caller)
        return database.transactions - asked

    assert run(ask) == 0


def test_a_day_and_a_month_begin_anew(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=USD, nano_usd_per_month=3 * USD))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        (await admit(accounts, caller, 0, USD)).settle(0, USD)
        settle(database, row(caller, clock, "1"))
        clock.pass_time(1)
        with pytest.raises(LimitExceeded) as refused:
            await admit(accounts, caller, 0, 1)
        assert refused.value.retry_after == pytest.approx(12 * 3600 - 1)
        # It is the last day of November.
        clock.pass_time(12 * 3600)
        for _ in range(3):
            await admit(accounts, caller, 0, USD)
            clock.pass_time(86_400)
        with pytest.raises(LimitExceeded) as refused:
            await admit(accounts, caller, 0, 1)
        assert refused.value.limit == "usd_per_month"

    run(ask)


def test_a_request_is_paid_by_the_day_it_arrived_on(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=USD))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        clock.wall += 12 * 3600
        yesterday = clock.wall - 5
        await accounts.admit(caller, 0, USD, yesterday)
        with pytest.raises(LimitExceeded):
            await accounts.admit(caller, 0, 1, yesterday)
        await accounts.admit(caller, 0, USD, clock.wall)

    run(ask)


def test_one_waiter_that_goes_away_does_not_take_the_answer_from_the_others(
    database: CountingDatabase, clock: Clocks
) -> None:
    caller = new_caller(database, Limits(requests_per_minute=5))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        waiting = [asyncio.ensure_future(accounts.admit(caller, 0, 0)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert not any(isinstance(answer, Exception) for answer in answers[1:])
        # What the first one would have taken is there for the next.
        await admit(accounts, caller)

    run(ask)

"""What a gateway holds of a limit: more while busy, less while idle, others' when it is dead, all in an outage."""

from __future__ import annotations

import asyncio
import threading
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
from inference_service.callers import allowances, clocks, windows
from inference_service.callers.accounts import Accounts, LimitExceeded, LimitsUnavailable
from inference_service.callers.caller import Limits


@pytest.fixture
def clock() -> Clocks:
    return Clocks()


@pytest.fixture
def database(tmp_path: Path) -> CountingDatabase:
    return CountingDatabase(sql.open(sql.sqlite_url(tmp_path / "requests.db")))


def test_a_busy_caller_rarely_waits_and_never_holds_much(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(requests_per_minute=100_000, nano_usd_per_day=100_000 * USD))

    async def ask() -> tuple[int, int]:
        accounts = accounts_of(database, clock)
        waited = 0
        for _ in range(5_000):
            admission = accounts.try_admit(caller, 0, USD)
            if admission is None:
                waited += 1
                admission = await accounts.admit(caller, 0, USD)
            admission.settle(0, USD // 2)
            clock.pass_time(0.002)
            await asyncio.sleep(0)
            # Give the question in the background its turn.
            if accounts._admissions._next_question is not None:
                await accounts._admissions._ask()
        _, held = used_and_held(database, caller, clock)
        return waited, held

    waited, held = run(ask)
    assert waited < 25
    # Spent is 2,500 USD, which no row has told yet; ahead of it at most a sixteenth of what is left.
    assert held < 2_500 * USD + 100_000 * USD // 16 + USD


def test_what_is_idle_goes_back_for_others(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(tokens_per_minute=100, nano_usd_per_day=USD))

    async def ask() -> None:
        one, other = accounts_of(database, clock, "g1"), accounts_of(database, clock, "g2")
        (await admit(one, caller, 100, USD)).settle(0, None)
        with pytest.raises(LimitExceeded) as refused:
            await admit(other, caller, 1, USD)
        assert refused.value.retry_after <= 60
        for _ in range(4):
            clock.pass_time(1)
            await one.look_after()
        await admit(other, caller, 100, USD)

    run(ask)


def test_closing_gives_back_what_was_not_used_and_keeps_what_was(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=USD))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        (await admit(accounts, caller, 0, USD)).settle(0, USD // 4)
        await accounts.close()

    run(ask)
    assert used_and_held(database, caller, clock) == (0, USD // 4)
    settle(database, row(caller, clock, "0.25"))
    assert used_and_held(database, caller, clock) == (USD // 4, 0)


def test_a_crashed_gateways_lease_is_others_after_a_minute_and_its_rows_still_count(
    database: CountingDatabase, clock: Clocks
) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=USD))

    async def ask() -> None:
        crashed, other = accounts_of(database, clock, "g1"), accounts_of(database, clock, "g2")
        (await admit(crashed, caller, 0, USD)).settle(0, USD // 4)
        clock.pass_time(30)
        with pytest.raises(LimitExceeded) as refused:
            await admit(other, caller, 0, USD)
        assert "set aside for requests under way" in refused.value.message
        assert refused.value.retry_after <= 2
        clock.pass_time(30)
        (await admit(other, caller, 0, USD)).settle(0, None)
        # The rows that it left in its journal come late.
        settle(database, row(caller, clock, "0.25", "g1"))
        await other._admissions.give_everything_back()
        with pytest.raises(LimitExceeded):
            await admit(other, caller, 0, USD)
        await admit(other, caller, 0, USD * 3 // 4)

    run(ask)
    assert used_and_held(database, caller, clock) == (USD // 4, USD * 3 // 4)


def test_a_gateway_that_was_taken_for_dead_gives_up_what_it_held(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=USD))

    async def ask() -> None:
        stopped, other = accounts_of(database, clock, "g1"), accounts_of(database, clock, "g2")
        (await admit(stopped, caller, 0, USD)).settle(0, None)
        clock.pass_time(50)
        await admit(other, caller, 0, USD)
        assert stopped.try_admit(caller, 0, 1) is None
        with pytest.raises(LimitExceeded):
            await admit(stopped, caller, 0, 1)

    run(ask)


def test_a_gateway_whose_clock_is_wrong_learns_from_the_database_that_it_was_taken_for_dead(
    database: CountingDatabase, clock: Clocks
) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=USD))

    async def ask() -> None:
        slow = Clocks()
        one = Accounts(database, "g1", clock=lambda: slow.wall, ticks=lambda: slow.ticks)
        (await admit(one, caller, 0, USD)).settle(0, None)
        with database.transaction() as cursor:
            cursor.execute("UPDATE lease_holders SET expires_ticks = 0")
        slow.pass_time(12)
        await one.look_after()
        assert one.try_admit(caller, 0, 1) is None

    run(ask)


def test_a_request_that_cost_more_than_was_estimated_is_paid_before_the_next(
    database: CountingDatabase, clock: Clocks
) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=10 * USD))

    async def ask() -> None:
        one, other = accounts_of(database, clock, "g1"), accounts_of(database, clock, "g2")
        (await admit(one, caller, 0, USD)).settle(0, 4 * USD)
        settle(database, row(caller, clock, "4"))
        # 6 USD are left: not 9, as the lease alone would say, and not 3.
        with pytest.raises(LimitExceeded):
            await admit(other, caller, 0, 6 * USD + 1)
        await admit(one, caller, 0, 6 * USD)
        with pytest.raises(LimitExceeded):
            await admit(other, caller, 0, 1)

    run(ask)
    assert used_and_held(database, caller, clock) == (4 * USD, 6 * USD)


def test_while_the_database_is_down_what_is_held_may_be_used_up_but_no_more(
    database: CountingDatabase, clock: Clocks
) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=10 * USD))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        (await admit(accounts, caller, 0, 2 * USD)).settle(0, None)
        database.down = True
        await admit(accounts, caller, 0, USD)
        with pytest.raises(LimitsUnavailable) as refused:
            await admit(accounts, caller, 0, 2 * USD)
        assert refused.value.retry_after > 0
        assert accounts.trouble == "nobody answers"
        assert "nobody answers" not in refused.value.message
        asked = database.transactions
        with pytest.raises(LimitsUnavailable):
            await admit(accounts, caller, 0, 2 * USD)
        assert database.transactions == asked, "an outage is not asked about by every request"
        # A lease that nobody can renew is over before others may take it.
        clock.pass_time(41)
        with pytest.raises(LimitsUnavailable):
            await admit(accounts, caller, 0, USD)
        database.down = False
        clock.pass_time(2)
        await admit(accounts, caller, 0, USD)
        assert accounts.trouble is None

    run(ask)


def test_old_windows_and_dead_holders_are_forgotten_and_live_ones_are_not(
    database: CountingDatabase, clock: Clocks
) -> None:
    caller = new_caller(database, Limits(requests_per_minute=5, nano_usd_per_day=USD, nano_usd_per_month=USD))

    async def ask() -> None:
        await admit(accounts_of(database, clock, "old"), caller, 0, 5)
        clock.pass_time(20 * 3600)
        await admit(accounts_of(database, clock, "new"), caller, 0, 5)

    run(ask)
    allowances.forget(database, clocks.Now(clocks._boot(), clock.ticks, clock.wall))
    with database.snapshot() as cursor:
        holders = cursor.execute("SELECT holder FROM lease_holders").fetchall()
        leases = cursor.execute("SELECT DISTINCT holder FROM leases").fetchall()
        minutes = cursor.execute("SELECT window_start FROM allowances WHERE quantity = 'requests_per_minute'")
        assert (holders, leases) == ([("new",)], [("new",)])
        assert [start for (start,) in minutes] == [windows.start_of("minute", clock.wall)]


def test_a_database_that_hangs_is_not_waited_for_and_what_it_grants_late_is_not_lost(
    database: CountingDatabase, clock: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = new_caller(database, Limits(nano_usd_per_day=USD))
    monkeypatch.setattr("inference_service.callers.accounts._ANSWER_WITHIN", 0.2)
    answers = threading.Event()
    take = allowances.take

    def hang(*arguments: Any) -> Any:
        answers.wait(30)
        return take(*arguments)

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        monkeypatch.setattr(allowances, "take", hang)
        with pytest.raises(LimitsUnavailable):
            await admit(accounts, caller, 0, USD)
        answers.set()
        clock.pass_time(2)
        # By now the lost answer has set everything aside for nobody; the next question puts that right.
        monkeypatch.setattr("inference_service.callers.accounts._ANSWER_WITHIN", 20)
        await admit(accounts, caller, 0, USD)

    run(ask)
    assert used_and_held(database, caller, clock) == (0, USD)


def test_a_busy_caller_does_not_wait_when_a_minute_begins(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(requests_per_minute=10_000))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        clock.wall += 56
        for _ in range(3):
            for _ in range(200):
                await admit(accounts, caller)
            clock.pass_time(1)
            await accounts.look_after()
        clock.pass_time(1.5)
        asked = database.transactions
        for _ in range(50):
            await accounts.admit(caller, 0, 0)
        assert database.transactions == asked

    run(ask)
    assert used_and_held(database, caller, clock, "requests_per_minute")[0] >= 50


def test_a_lease_that_its_holder_forgot_is_not_taken_for_a_debt(
    database: CountingDatabase, clock: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.callers.accounts._FORGET_EVERY", 10**6)  # the database has not forgotten it
    caller = new_caller(database, Limits(nano_usd_per_day=10 * USD))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        (await admit(accounts, caller, 0, 6 * USD)).settle(0, 6 * USD)
        settle(database, row(caller, clock, "6"))
        arrived = clock.wall
        clock.pass_time(14 * 3600)
        await accounts.look_after()  # the day has been over for two hours
        with pytest.raises(LimitExceeded):
            await accounts.admit(caller, 0, 4 * USD + 1, arrived)
        await accounts.admit(caller, 0, 4 * USD, arrived)

    run(ask)

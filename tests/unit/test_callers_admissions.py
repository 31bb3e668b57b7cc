"""Letting requests in: fast from memory, fetched ahead while busy, given back while idle, refused with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from inference_service import sql
from inference_service.callers import allowances, clocks, own_usage, settlement, store, windows
from inference_service.callers.accounts import Accounts, LimitExceeded, LimitsUnavailable
from inference_service.callers.caller import Caller, Limits
from inference_service.errors import ToolError
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


@pytest.fixture
def clock() -> Clocks:
    return Clocks()


@pytest.fixture
def database(tmp_path: Path) -> CountingDatabase:
    return CountingDatabase(sql.open(sql.sqlite_url(tmp_path / "requests.db")))


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
    clock.wall = NOON + 20

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
        for _ in range(3):
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
        assert accounts.trouble
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


def test_new_limits_hold_for_the_next_request(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(requests_per_minute=1_000, nano_usd_per_day=10 * USD))

    async def ask() -> None:
        accounts = accounts_of(database, clock)
        await accounts.refresh(force=True)
        (await admit(accounts, caller, 0, 5 * USD)).settle(0, 2 * USD)
        store.change_limits(database, "web", {"nano_usd_per_day": 3 * USD, "requests_per_minute": None})
        clock.pass_time(1)
        await accounts.look_after()
        # The request's own copy of the caller is older than the limits.
        with pytest.raises(LimitExceeded) as refused:
            await admit(accounts, caller, 0, USD + 1)
        assert refused.value.limit == "usd_per_day"
        await admit(accounts, caller, 0, USD)

    run(ask)


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


def test_a_new_key_is_known_at_its_first_use_and_a_removed_one_within_a_look(
    database: CountingDatabase, clock: Clocks
) -> None:
    async def ask() -> None:
        accounts = Accounts(database, "g1")
        await accounts.start()
        try:
            stored, key = store.add(database, store.NewCaller("web"))
            sent = key.api_key.encode()
            assert accounts.authenticate(sent) is None
            assert await accounts.find(sent) == stored.caller
            store.disable(database, "web")
            for _ in range(40):
                if accounts.authenticate(sent) is None:
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("it is still let in two seconds later")
            store.enable(database, "web")
            assert await accounts.find(sent) == stored.caller
        finally:
            await accounts.close()

    run(ask)


def test_unknown_keys_ask_the_database_four_times_a_second_at_most(
    database: CountingDatabase, clock: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference_service.callers import directory, keys

    looks = 0
    load = directory.load

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return load(*arguments)

    monkeypatch.setattr(directory, "load", counted)

    async def ask() -> None:
        accounts = Accounts(database, "g1")
        await accounts.refresh(force=True)
        strangers = [keys.make().api_key.encode() for _ in range(500)]
        assert set(await asyncio.gather(*map(accounts.find, strangers))) == {None}
        assert await accounts.find(b"sk-no-key-of-ours") is None

    run(ask)
    assert looks == 2


def test_a_key_that_nobody_can_look_up_is_not_said_to_be_wrong(tmp_path: Path, clock: Clocks) -> None:
    from inference_service.callers import keys

    (tmp_path / "requests.db").write_text("this is no database, and longer than a header of one would be" * 10)
    database = sql.open(sql.sqlite_url(tmp_path / "requests.db"))

    async def ask() -> None:
        accounts = Accounts(database, "g1")
        with pytest.raises(ToolError):
            await accounts.start()
        with pytest.raises(LimitsUnavailable):
            await accounts.find(keys.make().api_key.encode())

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


def test_own_usage_says_what_was_used_and_what_is_left(database: CountingDatabase, clock: Clocks) -> None:
    caller = new_caller(database, Limits(tokens_per_minute=1_000, nano_usd_per_day=USD))

    async def ask() -> None:
        await admit(accounts_of(database, clock), caller, 100, USD // 2)

    run(ask)
    settle(
        database,
        row(caller, clock, "0.1", model="m1", network_arch="a", input_tokens=7, output_tokens=3, http_status=200),
        row(caller, clock, "0.000000001", model="m2", network_arch="a", input_tokens=1, http_status=200),
        RequestRow(
            "r3", clock.wall, "", caller_id=caller.id, model="made up", http_status=404, error_type="unknown_model"
        ),
        row(caller, Clocks(), "1", model="m1", network_arch="a", holder="another"),
    )
    clock.wall += 0.5
    document = own_usage.document(database, caller, clock.wall)
    today = document["today"]
    assert (today["requests"], today["errors"], today["unpriced"]) == (4, 1, 1)
    assert today["cost_usd"] == "1.100000001"
    assert [line["model"] for line in today["by_model"]] == ["m1", "m2", None]
    assert today["by_model"][0]["input_tokens"] == 7
    tokens, day = document["limits"]
    assert (tokens["limit"], tokens["used"], tokens["left"]) == ("tokens_per_minute", 100, 900)
    assert (day["value"], day["used"], day["left"]) == ("1", "1.100000001", "0")
    assert day["resets_at"] == "2026-12-01T00:00:00Z"

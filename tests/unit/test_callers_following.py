"""Gateways follow what callers.py changes; callers see what they used."""

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
)

from inference_service import sql
from inference_service.callers import directory, keys, own_usage, store
from inference_service.callers.accounts import Accounts, LimitExceeded, LimitsUnavailable
from inference_service.callers.caller import Limits
from inference_service.errors import ToolError
from inference_service.request_log.rows import RequestRow


@pytest.fixture
def clock() -> Clocks:
    return Clocks()


@pytest.fixture
def database(tmp_path: Path) -> CountingDatabase:
    return CountingDatabase(sql.open(sql.sqlite_url(tmp_path / "requests.db")))


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
    (tmp_path / "requests.db").write_text("this is no database, and longer than a header of one would be" * 10)
    database = sql.open(sql.sqlite_url(tmp_path / "requests.db"))

    async def ask() -> None:
        accounts = Accounts(database, "g1")
        with pytest.raises(ToolError):
            await accounts.start()
        with pytest.raises(LimitsUnavailable):
            await accounts.find(keys.make().api_key.encode())

    run(ask)


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

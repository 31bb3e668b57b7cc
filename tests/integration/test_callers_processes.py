"""Many gateway processes over one database, real ones: together they keep a limit, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from postgresql_server import PostgresqlServer
from support import SCRIPTS, eventually

from inference_service import sql
from inference_service.callers import store
from inference_service.callers.accounts import Accounts, LimitsUnavailable
from inference_service.callers.caller import Limits

pytestmark = pytest.mark.slow

PROCESSES = 8

# Asks as fast as it can until it is refused; writes a line for each request before the next one, and settles each by a
# row as the recorder does. The wall clock stands still, so that no minute ends meanwhile.
GATEWAY = """
import asyncio, json, os, sys
from decimal import Decimal
from inference_service import sql
from inference_service.callers import money, settlement, store
from inference_service.callers.accounts import Accounts, LimitExceeded
from inference_service.request_log.rows import RequestRow

url, estimate, cost = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
NOW = 1_796_040_000.0

async def main():
    database = sql.open(url)
    with database.snapshot() as cursor:
        caller = store.read(cursor)[0].caller
    holder = f"gateway {os.getpid()}"
    accounts = Accounts(database, holder, clock=lambda: NOW)
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        try:
            admission = accounts.try_admit(caller, 1, estimate) or await accounts.admit(caller, 1, estimate)
        except LimitExceeded as error:
            print(json.dumps({"refused": error.limit}), flush=True)
            break
        print("admitted", flush=True)
        admission.settle(1, cost)
        if cost:
            row = RequestRow("", NOW, "", caller_id=caller.id, cost_usd=Decimal(cost) / money.PER_USD, gateway=holder)
            with database.transaction() as cursor:
                settlement.settle(cursor, [row])
    await accounts.close()

asyncio.run(main())
"""


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def start(url: str, estimate: int = 0, cost: int = 0, processes: int = PROCESSES) -> list[subprocess.Popen[str]]:
    """Gateways that are ready to begin, all at once."""
    gateways = [
        subprocess.Popen(
            [sys.executable, "-c", GATEWAY, url, str(estimate), str(cost)],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for gateway in gateways:
        assert gateway.stdout is not None
        assert gateway.stdin is not None
        assert gateway.stdout.readline() == "ready\n"
    for gateway in gateways:
        assert gateway.stdin is not None
        gateway.stdin.write("\n")
        gateway.stdin.flush()
    return gateways


def finish(gateways: Sequence[subprocess.Popen[str]]) -> tuple[int, list[str]]:
    """How many requests were admitted by all of them, and why the last of each was not."""
    admitted, refused = 0, []
    for gateway in gateways:
        text, _ = gateway.communicate(timeout=120)
        for line in text.splitlines():
            if line == "admitted":
                admitted += 1
            else:
                refused.append(json.loads(line)["refused"])
    return admitted, refused


def amounts(url: str, query: str) -> list[tuple[int, ...]]:
    database = sql.open(url)
    with database.snapshot() as cursor:
        rows = cursor.execute(query).fetchall()
    database.close()
    return rows


def test_eight_processes_admit_exactly_as_many_requests_as_a_minute_allows(url: str) -> None:
    store.add(sql.open(url), store.NewCaller("web", limits=Limits(requests_per_minute=500)))
    assert finish(start(url)) == (500, ["requests_per_minute"] * PROCESSES)


def test_eight_processes_spend_a_budget_and_never_more_and_count_each_once(url: str) -> None:
    store.add(sql.open(url), store.NewCaller("web", limits=Limits(nano_usd_per_day=400, nano_usd_per_month=4_000)))
    admitted, refused = finish(start(url, estimate=2, cost=2))
    assert set(refused) == {"usd_per_day"}
    # Who is refused last may be so while another, who ends, has not given back the one request that it still holds.
    assert 200 - PROCESSES < admitted <= 200
    assert sorted(amounts(url, "SELECT used FROM allowances")) == [(2 * admitted,), (2 * admitted,)]
    assert amounts(url, "SELECT SUM(nano_usd), SUM(requests) FROM caller_usage") == [(2 * admitted, admitted)]
    assert amounts(url, "SELECT SUM(amount) FROM leases") == [(0,)]


def test_estimates_never_exceed_a_budget_when_half_of_the_processes_are_killed(url: str) -> None:
    store.add(sql.open(url), store.NewCaller("web", limits=Limits(nano_usd_per_day=3_000)))
    gateways = start(url, estimate=20, cost=5)
    killed, others = gateways[: PROCESSES // 2], gateways[PROCESSES // 2 :]
    eventually(lambda: amounts(url, "SELECT SUM(used) FROM allowances")[0][0], timeout=60)
    for gateway in killed:
        gateway.kill()
    finish_killed = [gateway.communicate(timeout=60)[0].count("admitted") for gateway in killed]
    admitted, refused = finish(others)
    assert set(refused) == {"usd_per_day"}
    # A killed one may have been admitted once more than its rows say; what is used comes from rows alone.
    ((used,),) = amounts(url, "SELECT used FROM allowances WHERE quantity = 'usd_per_day'")
    assert used <= 3_000
    assert (admitted + sum(finish_killed) - len(killed)) * 5 <= used <= (admitted + sum(finish_killed)) * 5
    ((held,),) = amounts(url, "SELECT SUM(CASE WHEN amount > 0 THEN amount ELSE 0 END) FROM leases")
    assert used + held <= 3_000


def test_a_postgresql_outage_leaves_what_is_leased_and_nothing_more(postgresql: PostgresqlServer) -> None:
    database = sql.open(postgresql.new_database())
    free, _ = store.add(database, store.NewCaller("free"))
    budget, key = store.add(database, store.NewCaller("budget", limits=Limits(nano_usd_per_day=100)))
    sent = key.api_key.encode()

    async def ask() -> None:
        accounts = Accounts(database, "g1")
        await accounts.start()
        try:
            (await accounts.admit(budget.caller, 0, 10)).settle(0, None)
            with postgresql.outage():
                assert accounts.authenticate(sent) == budget.caller
                assert accounts.try_admit(free.caller, 5, 5) is not None
                assert accounts.try_admit(budget.caller, 0, 10) is not None
                with pytest.raises(LimitsUnavailable) as refused:
                    await accounts.admit(budget.caller, 0, 10)
                assert refused.value.retry_after > 0
            deadline = asyncio.get_running_loop().time() + 20
            while True:
                try:
                    await accounts.admit(budget.caller, 0, 10)
                    break
                except LimitsUnavailable as error:
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(error.retry_after)
            assert accounts.trouble is None or await accounts.refresh(force=True)
        finally:
            await accounts.close()

    asyncio.run(asyncio.wait_for(ask(), 60))

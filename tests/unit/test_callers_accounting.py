"""No interleaving of processes, crashes, outages and clock steps lets callers past their limits or loses a cent.

Several gateways' Accounts on one SQLite file, driven by hypothesis with a clock of the test's own. What they may never
break: what is under way at its estimate and what is finished at its cost stay within every limit of their window.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from inference_service import sql
from inference_service.callers import allowances, clocks, money, settlement, store, windows
from inference_service.callers.accounts import Accounts, Admission, LimitExceeded, LimitsUnavailable
from inference_service.callers.caller import Caller, Limits
from inference_service.request_log.rows import RequestRow
from inference_service.sql import Cursor, DatabaseUnusable

T = TypeVar("T")

# The last minute of a month: minutes, days and months roll over while the test goes on.
START = 1_796_083_170.0
HOLDERS = 3

# Removed when the process ends.
_KEPT = tempfile.TemporaryDirectory(prefix="callers-accounting-")
_FOLDER = Path(_KEPT.name)


class FlakyDatabase(sql.Database):
    """A database whose next transaction may fail before it does anything, or lose its answer after it did."""

    fault: str | None = None

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        fault, self.fault = self.fault, None
        if fault == "before":
            raise DatabaseUnusable("database_unusable", "it is down")
        with super().transaction() as cursor:
            yield cursor
        if fault == "after":
            raise DatabaseUnusable("database_unusable", "the connection broke")


@dataclass
class Gateway:
    holder: str
    database: FlakyDatabase
    accounts: Accounts
    alive: bool = True
    died_at: float = 0.0


@dataclass
class Request:
    gateway: Gateway
    admission: Admission
    at: float
    admitted_at: float
    tokens: int
    nano_usd: int
    state: str = "under way"  # finished, recorded, lost
    late: bool = field(default=False)

    def row(self) -> RequestRow:
        cost = Decimal(self.nano_usd) / money.PER_USD
        return RequestRow(
            "any", self.at, "", caller_id=CALLER, network_arch="a", cost_usd=cost, gateway=self.gateway.holder
        )


CALLER = ""


class Accounting(RuleBasedStateMachine):
    requests_under_way = Bundle("requests_under_way")

    @initialize(
        day=st.integers(0, 60), month=st.integers(0, 90), requests=st.integers(1, 12), tokens=st.integers(1, 120)
    )
    def begin(self, day: int, month: int, requests: int, tokens: int) -> None:
        global CALLER
        self.loop = asyncio.new_event_loop()
        self.wall, self.ticks = START, 1000.0
        self.path = _new_database()
        self.database = sql.open(sql.sqlite_url(self.path))
        self.limits = Limits(requests, tokens, day, month)
        stored, _ = store.add(self.database, store.NewCaller("web", limits=self.limits))
        self.caller: Caller = stored.caller
        CALLER = self.caller.id
        self.born = 0
        self.gateways = [self._new_gateway() for _ in range(HOLDERS)]
        self.all: list[Request] = []
        self.slack: dict[tuple[str, int], int] = defaultdict(int)

    def _new_gateway(self) -> Gateway:
        self.born += 1
        database = FlakyDatabase(sql.open(sql.sqlite_url(self.path))._driver)
        holder = f"gateway {self.born}"
        return Gateway(holder, database, Accounts(database, holder, clock=lambda: self.wall, ticks=lambda: self.ticks))

    def run(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, 30)

        return self.loop.run_until_complete(bounded())

    @rule(
        target=requests_under_way,
        which=st.integers(0, HOLDERS - 1),
        tokens=st.integers(0, 40),
        nano_usd=st.integers(0, 25),
        ago=st.sampled_from((0.0, 0.0, 0.0, 40.0)),
    )
    def ask(self, which: int, tokens: int, nano_usd: int, ago: float) -> Request | None:
        gateway = self.gateways[which]
        at = self.wall - ago
        try:
            admission = gateway.accounts.try_admit(self.caller, tokens, nano_usd, at)
            if admission is None:
                admission = self.run(gateway.accounts.admit(self.caller, tokens, nano_usd, at))
        except LimitExceeded as refusal:
            assert refusal.retry_after > 0
            assert refusal.limit in refusal.message
            return None
        except LimitsUnavailable:
            return None
        finally:
            gateway.database.fault = None
        request = Request(gateway, admission, at, self.wall, tokens, nano_usd)
        self.all.append(request)
        return request

    @rule(
        request=consumes(requests_under_way),
        tokens=st.floats(0, 1),
        money=st.floats(0, 1),
    )
    def finish(self, request: Request | None, tokens: float, money: float) -> None:
        if request is None or request.state != "under way":
            return
        request.tokens = int(request.tokens * tokens)
        request.nano_usd = int(request.nano_usd * money)
        request.admission.settle(request.tokens, request.nano_usd or None)
        request.admission.settle(10**6, 10**6)  # a second time changes nothing
        request.state = "finished"

    @rule(most=st.integers(1, 5))
    def record(self, most: int) -> None:
        rows = [request for request in self.all if request.state == "finished"][:most]
        with self.database.transaction() as cursor:
            settlement.settle(cursor, [request.row() for request in rows])
        for request in rows:
            request.state = "recorded"

    @rule(which=st.integers(0, HOLDERS - 1))
    def crash(self, which: int) -> None:
        gateway = self.gateways[which]
        gateway.alive, gateway.died_at = False, self.ticks
        for request in self.all:
            if request.gateway is gateway and request.state == "under way":
                # What it would have cost is known to nobody; no row says it.
                request.state, request.nano_usd = "lost", 0
        self.gateways[which] = self._new_gateway()

    @rule(seconds=st.sampled_from((0.1, 1.0, 5.0, 9.0, 30.0, 70.0, 600.0)))
    def time_passes(self, seconds: float) -> None:
        while seconds > 0:
            self._pass(min(seconds, 9.0))
            seconds -= 9.0
            for gateway in self.gateways:
                self.run(gateway.accounts.look_after())

    @rule(which=st.integers(0, HOLDERS - 1))
    def is_stopped_for_a_minute(self, which: int) -> None:
        gateway = self.gateways[which]
        if any(request.gateway is gateway and request.state in ("under way", "finished") for request in self.all):
            return
        for _ in range(7):
            self._pass(9.0)
            for other in self.gateways:
                if other is not gateway:
                    self.run(other.accounts.look_after())

    @rule(seconds=st.sampled_from((-86_400.0, -70.0, -1.0, 1.0, 70.0, 86_400.0)))
    def clock_is_set(self, seconds: float) -> None:
        self.wall += seconds

    @rule(which=st.integers(0, HOLDERS - 1), fault=st.sampled_from(("before", "after")))
    def database_will_fail(self, which: int, fault: str) -> None:
        self.gateways[which].database.fault = fault

    @rule(which=st.integers(0, HOLDERS - 1))
    def gives_everything_back(self, which: int) -> None:
        self.run(self.gateways[which].accounts._admissions.give_everything_back())

    def _pass(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds
        for request in self.all:
            gateway = request.gateway
            gone = not gateway.alive and self.ticks > gateway.died_at + 20
            if request.state == "finished" and gone and not request.late:
                # Its holder may be taken for dead from now on: what it has spent may come on top.
                request.late = True
                for quantity in windows.BUDGETS:
                    self.slack[_window(quantity, request.at)] += request.nano_usd

    @invariant()
    def limits_hold(self) -> None:
        used: dict[tuple[str, int], int] = defaultdict(int)
        for request in self.all:
            used[_window(windows.REQUESTS, request.admitted_at)] += 1
            used[_window(windows.TOKENS, request.admitted_at)] += request.tokens
            for quantity in windows.BUDGETS:
                used[_window(quantity, request.at)] += request.nano_usd
        for (name, start), amount in used.items():
            limit = windows.BY_NAME[name].limit_of(self.limits)
            assert limit is not None
            assert amount <= limit + self.slack[name, start], f"{amount} of {limit} {name} since {start}"

    @invariant()
    def used_and_held_stay_within_the_budget(self) -> None:
        now = clocks.Now(clocks._boot(), self.ticks, self.wall)
        with self.database.snapshot() as cursor:
            keys = cursor.execute("SELECT DISTINCT caller_id, quantity, window_start FROM leases").fetchall()
            for key in keys:
                _, name, start = key
                limit = windows.BY_NAME[name].limit_of(self.limits)
                assert limit is not None
                total = allowances.used(cursor, key) + allowances.held(cursor, now, key)
                assert total <= limit + self.slack[name, start]

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self._settle_everything()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
            self.database.close()
            for gateway in self.gateways:
                gateway.database.close()
            shutil.rmtree(self.path.parent)

    def _settle_everything(self) -> None:
        for request in self.all:
            self.finish(request, 0.5, 0.5)
        while any(request.state == "finished" for request in self.all):
            self.record(100)
        self.limits_hold()
        spent: dict[tuple[str, int], int] = defaultdict(int)
        for request in self.all:
            for quantity in windows.BUDGETS:
                spent[_window(quantity, request.at)] += request.nano_usd
        with self.database.snapshot() as cursor:
            for (name, start), amount in spent.items():
                assert allowances.used(cursor, (CALLER, name, start)) == amount
            (counted,) = next(iter(cursor.execute("SELECT SUM(nano_usd) FROM caller_usage")))
            assert (counted or 0) == sum(request.nano_usd for request in self.all)
        self._nothing_stays_set_aside()

    def _nothing_stays_set_aside(self) -> None:
        """When all is over and given back, a gateway that lives holds nothing of the windows it still knows."""
        for gateway in self.gateways:
            gateway.database.fault = None
            self.ticks += 2  # an outage is not asked about again at once
            self.run(gateway.accounts._admissions.give_everything_back())
            known = {
                (pool.quantity.name, pool.start)
                for account in gateway.accounts._admissions._accounts.values()
                for pool in account.pools.values()
            }
            with self.database.snapshot() as cursor:
                for name, start, amount in cursor.execute(
                    "SELECT quantity, window_start, amount FROM leases WHERE holder = :holder",
                    {"holder": gateway.holder},
                ):
                    assert amount == 0 or (name, start) not in known, f"{amount} of {name} stay with {gateway.holder}"


def _window(quantity: windows.Quantity, at: float) -> tuple[str, int]:
    return quantity.name, windows.start_of(quantity.window, at)


def _new_database() -> Path:
    template = _FOLDER / "template.db"
    if not template.exists():
        database = sql.open(sql.sqlite_url(template))
        with database.transaction() as cursor:
            cursor.raw.execute("PRAGMA user_version")
        database.close()
        raw: Any = database._driver.connect()
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.close()
    folder = Path(tempfile.mkdtemp(dir=_FOLDER))
    shutil.copy(template, folder / "requests.db")
    return folder / "requests.db"


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=40, stateful_step_count=40)

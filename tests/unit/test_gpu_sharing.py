"""A GPU's time is shared equally at each instant, and its cost is charged or idle to the last fraction."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import money
from inference_service.contracts import ServiceEntry
from inference_service.gpu_sharing import ProcessorSharing
from inference_service.pricing import GpuPrice
from inference_service.service_meter import ServiceMeter, service_meter, steady_clock

SECOND = 10**9
HOUR = 3600 * SECOND
NEW_YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc)
NEW_YEAR_NS = int(NEW_YEAR.timestamp()) * SECOND


def began(sharing: ProcessorSharing, now: int) -> int:
    begun = sharing.begin(now)
    assert begun is not None
    return begun


def meter(*prices: tuple[int, str], now: int = 0) -> ProcessorSharing:
    return ProcessorSharing([(since, Decimal(usd)) for since, usd in prices], now)


def test_one_alone_pays_all_two_at_once_half_each_and_nobody_the_idle_time() -> None:
    sharing = meter((0, "3.60"))
    first = began(sharing, 10 * SECOND)
    second = began(sharing, 20 * SECOND)
    assert sharing.end(first, 40 * SECOND) == Decimal("0.020")
    assert sharing.end(second, 45 * SECOND) == Decimal("0.015")
    shares = sharing.shares(100 * SECOND)
    assert (shares.cost, shares.charged) == (Fraction("0.1"), Fraction("0.035"))
    assert (shares.idle, shares.under_way) == (Fraction("0.065"), Fraction(0))


def test_each_stretch_costs_what_its_price_says() -> None:
    sharing = meter((0, "3.60"), (10 * SECOND, "36"), (20 * SECOND, "0"))
    begun = began(sharing, 5 * SECOND)
    assert sharing.price_number == 0
    assert sharing.end(begun, 30 * SECOND) == Decimal("0.105")
    assert sharing.price_number == 2
    assert sharing.shares(40 * SECOND).cost == Fraction("0.110")


def test_new_prices_hold_from_now_on_and_what_was_charged_stays() -> None:
    sharing = meter((0, "3.60"))
    begun = began(sharing, 0)
    sharing.change_prices([(-HOUR, Decimal("7.20")), (20 * SECOND, Decimal("72"))], 10 * SECOND)
    assert sharing.end(begun, 30 * SECOND) == Decimal("0.010") + Decimal("0.020") + Decimal("0.200")


def test_a_clock_that_goes_back_charges_nothing_twice() -> None:
    sharing = meter((0, "3.60"))
    begun = began(sharing, 10 * SECOND)
    assert sharing.end(begun, 5 * SECOND) == 0
    assert sharing.shares(10 * SECOND).idle == Fraction("0.010")


def test_the_crumbs_of_a_division_are_idle_when_nobody_is_left() -> None:
    sharing = meter((0, "0.000000001"))
    three = [began(sharing, 0) for _ in range(3)]
    charges = [sharing.end(begun, 1) for begun in three]
    assert charges == [0, 0, 0]
    shares = sharing.shares(1)
    assert shares.cost == shares.idle == Fraction(1, 3600 * 10**18)
    assert shares.under_way == 0


def test_a_price_finer_than_a_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="nine decimals"):
        meter((0, "0.0000000001"))


@dataclass
class Slowly:
    """The same by brute force: instant by instant between two events, in fractions."""

    prices: list[tuple[int, Decimal]]
    now: int = 0
    idle: Fraction = Fraction(0)
    cost: Fraction = Fraction(0)
    owed: dict[int, Fraction] = field(default_factory=dict)

    def advance(self, now: int) -> None:
        cuts = sorted({self.now, now, *(since for since, _ in self.prices if self.now < since < now)})
        for begins, ends in itertools.pairwise(cuts):
            usd = ([usd for since, usd in self.prices if since <= begins] or [Decimal(0)])[-1]
            amount = Fraction(usd) * (ends - begins) / HOUR
            self.cost += amount
            if not self.owed:
                self.idle += amount
            for request in self.owed:
                self.owed[request] += amount / len(self.owed)
        self.now = now


STEPS = st.lists(
    st.tuples(st.one_of(st.integers(0, 10), st.integers(0, 10**12)), st.booleans(), st.integers(0, 10**6)),
    max_size=60,
)
PRICES = st.lists(
    st.tuples(st.integers(-(10**12), 10**13), st.decimals(0, 500, places=9)), max_size=5, unique_by=lambda pair: pair[0]
).map(sorted)


@given(PRICES, STEPS, st.integers(0, 10**12))
def test_any_interleaving_is_charged_like_the_slow_way_and_adds_up_exactly(
    prices: list[tuple[int, Decimal]], steps: list[tuple[int, bool, int]], rest: int
) -> None:
    sharing, slowly = ProcessorSharing(prices, 0), Slowly(prices)
    begun: dict[int, int] = {}
    charges: list[Decimal] = []
    now = 0
    ways_out = [(0, False, 0)] * len(steps)  # In the end, all do end.
    for number, (wait, begins, which) in enumerate([*steps, *ways_out]):
        now += wait
        slowly.advance(now)
        if begins:
            request_begun = sharing.begin(now)
            assert (request_begun is None) == (not prices or now < prices[0][0])
            if request_begun is not None:
                begun[number] = request_begun
                slowly.owed[number] = Fraction(0)
        elif begun:
            request = sorted(begun)[which % len(begun)]
            charge = sharing.end(begun.pop(request), now)
            assert charge >= 0
            assert abs(Fraction(charge) - slowly.owed.pop(request)) < Fraction(1, 10**12)
            charges.append(charge)
        shares = sharing.shares(now)
        assert shares.cost == slowly.cost
        assert shares.charged == sum(map(Fraction, charges))
        assert shares.charged + shares.idle + shares.under_way == shares.cost
        assert abs(shares.under_way - sum(slowly.owed.values())) < Fraction(1, 10**12)
        assert abs(shares.idle - slowly.idle) < Fraction(1, 10**12)
    slowly.advance(now + rest)
    shares = sharing.shares(now + rest)
    assert shares.under_way == 0
    assert shares.charged + shares.idle == shares.cost == slowly.cost


@given(PRICES, STEPS, st.integers(0, 10**13))
def test_no_charge_is_above_the_bound_for_its_seconds(
    prices: list[tuple[int, Decimal]], steps: list[tuple[int, bool, int]], duration: int
) -> None:
    sharing = ProcessorSharing(prices, 0)
    others: list[int] = []
    now = 0
    for wait, begins, _ in steps:
        now += wait
        if begins:
            others += [begun for begun in [sharing.begin(now)] if begun is not None]
        elif others:
            sharing.end(others.pop(), now)
    begun = sharing.begin(now)
    if begun is None:
        return
    bound = sharing.upper_bound_nano_usd(duration)
    for other in others:
        sharing.end(other, now)
    assert money.nano_usd(sharing.end(begun, now + duration)) <= bound


# --- the meter of a service


def entry(num_gpus: int = 2, extras: Mapping[str, str] | None = None) -> ServiceEntry:
    return ServiceEntry("job-1", "cosmos-rl", "brev", "http://h", num_gpus=num_gpus, extras=extras or {})


def price(usd: str, since: datetime = NEW_YEAR, selector: tuple[str, str] | None = None) -> GpuPrice:
    return GpuPrice("brev", selector, Decimal(usd), since, "a test")


class Watch:
    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def metered(watch: Watch, *prices: GpuPrice, **extras: str) -> ServiceMeter:
    made = service_meter(entry(extras=extras), prices, watch)
    assert made is not None
    return made


def test_a_service_is_charged_for_all_its_gpus_and_the_row_says_by_which_price() -> None:
    watch = Watch(NEW_YEAR_NS)
    prices = [price("1.80"), price("18", NEW_YEAR + timedelta(seconds=20)), price("9", selector=("gpu", "*H100*"))]
    ours = metered(watch, *prices)
    begun = ours.begin()
    assert ours.priced_by == "gpu:brev@2026-01-01"
    watch.now += 30 * SECOND
    assert ours.end(begun) == Decimal("0.02") + Decimal("0.10")
    assert ours.priced_by == "gpu:brev@2026-01-01T00:00:20Z"
    assert ours.shares().idle == 0
    assert metered(watch, *prices, gpu="NVIDIA H100").priced_by == "gpu:brev,gpu=*H100*@2026-01-01"


def test_a_meter_in_a_directory_is_shared_by_all_who_give_that_directory(tmp_path: Path) -> None:
    watch = Watch(NEW_YEAR_NS)
    one, other = [service_meter(entry(), [price("1.80")], watch, tmp_path) for _ in range(2)]
    assert one is not None
    assert other is not None
    first, second = one.begin(), other.begin()
    watch.now += 10 * SECOND
    assert (one.end(first), other.end(second)) == (Decimal("0.005"), Decimal("0.005"))
    assert other.shares() == one.shares()
    one.close()
    other.close()


def test_without_a_price_or_a_gpu_there_is_no_meter() -> None:
    assert service_meter(entry(), []) is None
    assert service_meter(entry(num_gpus=0), [price("1")]) is None
    assert service_meter(entry(), [price("1", selector=("gpu", "*H100*"))]) is None


def test_a_request_before_the_first_price_is_unpriced_not_free() -> None:
    watch = Watch(NEW_YEAR_NS - SECOND)
    ours = metered(watch, price("1"))
    early = ours.begin()
    assert early is None
    watch.now += 2 * SECOND
    assert ours.end(early) is None
    later = ours.begin()
    watch.now += 1800 * SECOND
    assert ours.end(later) == 1


def test_the_bound_of_a_service_is_its_dearest_price_to_come() -> None:
    ours = metered(
        Watch(NEW_YEAR_NS + HOUR),
        price("36"),
        price("3.6", NEW_YEAR + timedelta(minutes=30)),
        price("7.2", NEW_YEAR + timedelta(hours=2)),
    )
    assert ours.upper_bound_nano_usd(1) == 4_000_001


def test_a_changed_file_of_prices_changes_the_meter_from_then_on() -> None:
    watch = Watch(NEW_YEAR_NS)
    ours = metered(watch, price("1.80"))
    begun = ours.begin()
    watch.now += 10 * SECOND
    assert not ours.change_prices([])
    assert ours.change_prices([price("3.60"), price("9", selector=("gpu", "*H100*"))])
    watch.now += 10 * SECOND
    assert ours.end(begun) == Decimal("0.03")


def test_the_steady_clock_is_right_and_never_goes_back() -> None:
    clock = steady_clock()
    before = datetime.now(timezone.utc).timestamp()
    times = [clock() for _ in range(1000)]
    assert times == sorted(times)
    assert abs(times[0] / SECOND - before) < 1

"""What GPUs cost: prices are the user's, change with time, and add up exactly."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import pricing
from inference_service.contracts import ServiceEntry
from inference_service.errors import ToolError
from inference_service.pricing import GpuPrice

NEW_YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)


def entry(**fields: object) -> ServiceEntry:
    known = ServiceEntry("job-1", "cosmos-rl", "brev", "http://h", num_gpus=2, started_at=NEW_YEAR.isoformat())
    return replace(known, **fields)  # type: ignore[arg-type]


def price(usd: str, since: datetime = NEW_YEAR, selector: tuple[str, str] | None = None) -> GpuPrice:
    return GpuPrice("brev", selector, Decimal(usd), since, "a test")


def prices_of(tmp_path: Path, rows: str) -> tuple[GpuPrice, ...]:
    file = tmp_path / "my prices.yaml"
    file.write_text(f"gpu_hour_prices:\n{rows}")
    return pricing.gpu_prices({"TAO_INF_PRICING": str(file)})


def test_no_price_is_delivered_because_none_would_be_true() -> None:
    assert pricing.gpu_prices({}) == ()


def test_the_users_file_replaces_ours_and_dates_need_no_quotes(tmp_path: Path) -> None:
    rows = """
  - {platform: brev, gpu: "*L40S*", usd_per_gpu_hour: 1.1, effective_from: 2026-01-01, source: invoice}
  - {platform: slurm, usd_per_gpu_hour: "0.40", effective_from: 2026-07-01T12:00:00+02:00, source: list}
"""
    brev, slurm = prices_of(tmp_path, rows)
    assert (brev.selector, brev.usd_per_gpu_hour, brev.effective_from) == (("gpu", "*L40S*"), Decimal("1.1"), NEW_YEAR)
    assert slurm.effective_from == datetime(2026, 7, 1, 10, tzinfo=timezone.utc)


ROW = "  - {platform: brev, usd_per_gpu_hour: 1, effective_from: 2026-01-01, source: x}\n"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (ROW.replace("hour: 1", "hour: -1"), "usd_per_gpu_hour"),
        (ROW.replace("hour: 1", "hour: .nan"), "usd_per_gpu_hour"),
        (ROW.replace("hour: 1", "hour: 0.0123456789"), "usd_per_gpu_hour"),
        (ROW.replace("2026-01-01", '"2026-02-30"'), "2026-02-30"),
        (ROW.replace("2026-01-01", "soon"), "effective_from"),
        (ROW.replace("source: x", "gpus: H100"), "gpu_hour_prices.0"),
        (ROW.replace("source: x", "source: x, gpu: a, instance_type: b"), "gpu_hour_prices.0"),
        (ROW + ROW.replace("hour: 1", "hour: 2"), "gpu_hour_prices.1"),
    ],
)
def test_a_price_that_breaks_a_rule_is_named_by_file_and_row(rows: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError) as refused:
        prices_of(tmp_path, rows)
    assert "my prices.yaml" in refused.value.message
    assert told in refused.value.message


def test_a_file_with_token_prices_alone_leaves_the_gpus_unpriced(tmp_path: Path) -> None:
    file = tmp_path / "my prices.yaml"
    file.write_text('token_prices: [{model: m, input: "1", output: "2", source: x}]')
    assert pricing.gpu_prices({"TAO_INF_PRICING": str(file)}) == ()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError):
        pricing.gpu_prices({"TAO_INF_PRICING": str(tmp_path / "none.yaml")})


def test_gpus_times_hours_times_the_price_in_force_at_each_time() -> None:
    rows = [price("2", NEW_YEAR + 3 * HOUR), price("1.5")]
    assert pricing.cost_so_far(entry(), rows, NEW_YEAR + 3 * HOUR).usd == Decimal("9.0000")
    assert pricing.cost_so_far(entry(), rows, NEW_YEAR + 5 * HOUR).usd == Decimal("17.0000")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_gpus": 0}, "no GPU"),
        ({"started_at": "yesterday"}, "started"),
        ({"platform": "slurm"}, "no price for it on slurm"),
        ({"started_at": (NEW_YEAR - HOUR).isoformat()}, "known from 2026-01-01"),
    ],
)
def test_what_has_no_price_is_unpriced_and_says_why(fields: dict[str, object], told: str) -> None:
    cost = pricing.cost_so_far(entry(**fields), [price("1")], NEW_YEAR + HOUR)
    assert cost.usd is None
    assert told in (cost.unpriced_because or "")


def test_a_pattern_goes_before_the_platforms_price_and_the_first_pattern_before_the_second() -> None:
    rows = [price("1"), price("2", selector=("gpu", "nvidia l4*")), price("3", selector=("instance_type", "g6*"))]

    def of(**extras: str) -> Decimal | None:
        return pricing.cost_so_far(entry(num_gpus=1, extras=extras), rows, NEW_YEAR + HOUR).usd

    assert of() == of(gpu="NVIDIA H100") == Decimal(1)
    assert of(gpu="NVIDIA L40S", instance_type="g6e.xlarge") == Decimal(2)
    assert of(instance_type="g6e.xlarge") == Decimal(3)


MOMENTS = st.integers(0, 10**13).map(lambda microseconds: NEW_YEAR + timedelta(microseconds=microseconds))
PRICES = st.lists(st.tuples(MOMENTS, st.decimals(0, 100, places=4)), max_size=6, unique_by=lambda pair: pair[0]).map(
    lambda pairs: [price("0.7"), *(price(str(usd), since) for since, usd in sorted(pairs) if since > NEW_YEAR)]
)


@given(PRICES, st.lists(MOMENTS, min_size=2, max_size=5), st.integers(1, 16))
def test_a_cost_is_the_sum_of_its_parts_wherever_it_is_cut(
    rows: list[GpuPrice], cuts: list[datetime], gpus: int
) -> None:
    cuts = sorted(cuts)
    parts = sum((pricing.usd(gpus, rows, *pair) for pair in itertools.pairwise(cuts)), Fraction(0))
    assert parts == pricing.usd(gpus, rows, cuts[0], cuts[-1])


@given(PRICES, st.lists(MOMENTS, min_size=2, max_size=2), st.integers(1, 16))
def test_the_cost_since_a_time_is_what_the_whole_grew_by(rows: list[GpuPrice], cuts: list[datetime], gpus: int) -> None:
    since, until = sorted(cuts)
    ours = entry(num_gpus=gpus)
    whole = pricing.cost_between(ours, rows, None, until)
    assert pricing.cost_between(ours, rows, since, until) == whole - pricing.cost_between(ours, rows, None, since)


@given(PRICES, MOMENTS, MOMENTS, st.integers(1, 16))
def test_each_moment_costs_what_the_newest_price_before_it_says(
    rows: list[GpuPrice], one: datetime, other: datetime, gpus: int
) -> None:
    start, until = sorted((one, other))
    # Between two changes one price holds: cut there, and look it up the slow way.
    cuts = sorted({start, until, *(row.effective_from for row in rows if start < row.effective_from < until)})
    expected = Fraction(0)
    for begins, ends in itertools.pairwise(cuts):
        newest = [row for row in rows if row.effective_from <= begins][-1]
        hours = Fraction((ends - begins) // timedelta(microseconds=1), 3_600_000_000)
        expected += gpus * hours * Fraction(newest.usd_per_gpu_hour)
    assert pricing.usd(gpus, rows, start, until) == expected
    assert abs(Fraction(pricing.rounded(expected)) - expected) <= Fraction(1, 20_000)

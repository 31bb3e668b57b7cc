"""What GPUs cost in a time, what requests were charged of it and what was idle adds up, or says why it is unknown."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from inference_service.contracts import ServiceEntry
from inference_service.gpu_cost import gpu_lines
from inference_service.pricing import GpuPrice
from inference_service.service_meter import service_meter

NEW_YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
ENTRY = ServiceEntry("job-1", "cosmos-rl", "brev", "http://h", num_gpus=2, started_at=NEW_YEAR.isoformat())
PRICES = [GpuPrice("brev", None, Decimal("1.50"), NEW_YEAR, "a test")]


def test_cost_is_charged_plus_idle_in_the_part_of_the_time_in_which_the_service_was_there() -> None:
    (line,) = gpu_lines([ENTRY], {"job-1": Decimal("0.123456789012345")}, NEW_YEAR - HOUR, NEW_YEAR + HOUR, PRICES)
    assert line == {
        "job_id": "job-1",
        "network_arch": "cosmos-rl",
        "platform": "brev",
        "num_gpus": 2,
        "since": "2026-01-01T00:00:00+00:00",
        "until": "2026-01-01T01:00:00+00:00",
        "cost_usd": Decimal("3"),
        "charged_usd": Decimal("0.123456789012345"),
        "idle_usd": Decimal("2.876543210987655"),
        "unpriced_because": None,
    }
    (later,) = gpu_lines([ENTRY], {}, NEW_YEAR + 2 * HOUR, NEW_YEAR + 3 * HOUR, PRICES)
    assert (later["since"], later["cost_usd"]) == ("2026-01-01T02:00:00+00:00", Decimal(3))
    assert later["idle_usd"] == later["cost_usd"]
    (whole,) = gpu_lines([ENTRY], {}, None, NEW_YEAR + 3 * HOUR, PRICES)
    assert whole["cost_usd"] == 9


def test_what_a_meter_charged_and_left_idle_is_the_line() -> None:
    now = int(NEW_YEAR.timestamp()) * 10**9
    meter = service_meter(ENTRY, PRICES, lambda: now)
    assert meter is not None
    charged = Decimal(0)
    for seconds in (7, 11, 13):
        first, second = meter.begin(), meter.begin()
        now += seconds * 10**9
        charged += (meter.end(first) or 0) + (meter.end(second) or 0)
        now += 10**9
    (line,) = gpu_lines([ENTRY], {"job-1": charged}, None, NEW_YEAR + timedelta(seconds=34), PRICES)
    shares = meter.shares()
    assert abs(line["cost_usd"] - Decimal(34) / 1200) < Decimal("1e-15")
    assert shares.charged == charged
    assert abs(float(shares.idle) - float(line["idle_usd"])) < 1e-15


@pytest.mark.parametrize(
    ("entry", "since", "told"),
    [
        (replace(ENTRY, platform="slurm"), None, "no price for it on slurm"),
        (replace(ENTRY, status="gone"), None, "has ended"),
        (replace(ENTRY, started_at=""), NEW_YEAR, "when it was started"),
        (replace(ENTRY, started_at=(NEW_YEAR - HOUR).isoformat()), None, "known from 2026-01-01"),
    ],
)
def test_a_cost_that_is_not_known_is_null_with_its_reason_and_what_was_charged_stays(
    entry: ServiceEntry, since: datetime | None, told: str
) -> None:
    (line,) = gpu_lines([entry], {"job-1": Decimal("0.5")}, since, NEW_YEAR + HOUR, PRICES)
    assert line["cost_usd"] is line["idle_usd"] is None
    assert line["charged_usd"] == Decimal("0.5")
    assert told in line["unpriced_because"]


def test_a_service_is_priced_for_a_time_after_its_first_price_though_it_is_older() -> None:
    older = replace(ENTRY, started_at=(NEW_YEAR - HOUR).isoformat())
    (line,) = gpu_lines([older], {}, NEW_YEAR, NEW_YEAR + HOUR, PRICES)
    assert line["cost_usd"] == 3


def test_services_without_gpus_have_no_line_and_those_that_are_gone_from_the_registry_keep_theirs() -> None:
    lines = gpu_lines([replace(ENTRY, num_gpus=0)], {"job-1": Decimal(1), "old": Decimal(2)}, None, NEW_YEAR, PRICES)
    assert [(line["job_id"], line["charged_usd"], line["cost_usd"]) for line in lines] == [("old", Decimal(2), None)]
    assert "not in the registry" in lines[0]["unpriced_because"]


def test_a_time_before_the_service_was_started_cost_nothing() -> None:
    (line,) = gpu_lines([ENTRY], {}, None, NEW_YEAR - HOUR, PRICES)
    assert line["cost_usd"] == 0
    assert line["since"] == line["until"]


def test_the_prices_are_those_of_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("gpu_hour_prices: [{platform: brev, usd_per_gpu_hour: 2, effective_from: 2026-01-01, source: x}]")
    monkeypatch.setenv("TAO_INF_PRICING", str(file))
    (line,) = gpu_lines([ENTRY], {}, None, NEW_YEAR + HOUR)
    assert line["cost_usd"] == 4

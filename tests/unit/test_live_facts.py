"""What the list says of each service now, whatever its platform does about being asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from doubles.fake_driver import FakeDriver
from doubles.tao_server import TaoServer

from inference_service import live_facts, platforms, processes
from inference_service.contracts import PlatformStatus, ServiceEntry, StartedService, State
from inference_service.errors import BadInput, ToolError

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()

    def load(name: str) -> FakeDriver:
        if name != "fake":
            raise BadInput("unknown_platform", f"unknown platform {name!r}", "")
        return fake

    monkeypatch.setattr(platforms, "load", load)
    return fake


@pytest.fixture
def server() -> Iterator[TaoServer]:
    with TaoServer("job-1", idle_minutes=12) as server:
        yield server


def entry(driver: FakeDriver, url: str = NOBODY, job_id: str = "job-1", **fields: Any) -> ServiceEntry:
    driver.running[job_id] = StartedService(job_id, "cosmos-rl", "fake", url)
    began = datetime.now(timezone.utc) - timedelta(hours=2)
    return ServiceEntry(job_id, "cosmos-rl", **{"platform": "fake", "host_url": url, "started_at": began.isoformat(),
                                                "num_gpus": 3, **fields})  # fmt: skip


def look(*entries: ServiceEntry, seconds: float = 10) -> list[dict[str, Any]]:
    facts = live_facts.look(entries, seconds)
    return [facts[each.job_id].document() for each in entries]


@pytest.fixture
def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.yaml"
    row = "{platform: fake, usd_per_gpu_hour: 0.5, effective_from: 2020-01-01, source: test}"
    file.write_text(f"gpu_hour_prices: [{row}]\n")
    monkeypatch.setenv("TAO_INF_PRICING", str(file))


def test_age_state_idle_minutes_and_cost_of_a_service_that_runs(
    driver: FakeDriver, server: TaoServer, priced: None
) -> None:
    (facts,) = look(entry(driver, server.url))
    assert 7200 <= facts["age_seconds"] < 7260
    assert (facts["state"], facts["state_reason"]) == ("RUNNING", "")
    assert 12 <= facts["idle_minutes"] < 13
    assert 3 <= float(facts["cost_usd"]) < 3.1
    assert facts["unpriced_because"] is None


def test_what_has_ended_or_not_begun_is_not_charged_on(driver: FakeDriver, priced: None) -> None:
    ended, pending = entry(driver, job_id="ended"), entry(driver, job_id="pending")
    del driver.running["ended"]
    driver.on_status = lambda each: PlatformStatus(State.PENDING, "queued") if each.job_id == "pending" else None
    gone = entry(driver, job_id="gone", status="gone")
    found = look(ended, pending, gone)
    assert [facts["state"] for facts in found] == ["FAILED", "PENDING", "RUNNING"]
    assert [facts["cost_usd"] for facts in found] == [None] * 3
    assert all(facts["unpriced_because"] for facts in found)


def test_a_start_under_way_is_pending_although_its_platform_knows_nothing_of_it(driver: FakeDriver) -> None:
    starting = entry(driver, status="starting", reserved_by=processes.this_process())
    driver.running.clear()
    (facts,) = look(starting)
    assert facts["state"] == "PENDING"


@pytest.mark.parametrize("error", [ToolError("no_engine", "no engine here"), RuntimeError("no engine here")])
def test_a_platform_that_cannot_be_asked_leaves_the_others_alone(driver: FakeDriver, error: Exception) -> None:
    def fail(each: ServiceEntry) -> None:
        if each.job_id == "job-1":
            raise error

    driver.on_status = fail
    broken, well, unknown = look(entry(driver), entry(driver, job_id="job-2"), entry(driver, job_id="3", platform="no"))
    assert (broken["state"], broken["state_reason"]) == ("UNKNOWN", "no engine here")
    assert well["state"] == "RUNNING"
    assert (unknown["state"], unknown["idle_minutes"]) == ("UNKNOWN", None)


def test_a_platform_and_a_service_that_hang_are_waited_for_no_longer_than_said(
    driver: FakeDriver, server: TaoServer
) -> None:
    never = threading.Event()

    def hang(each: ServiceEntry) -> None:
        if each.job_id == "hangs":
            never.wait(60)

    driver.on_status = hang
    began = time.monotonic()
    hangs, well = look(entry(driver, "http://10.255.255.1:1", job_id="hangs"), entry(driver, server.url), seconds=1)
    never.set()
    assert time.monotonic() - began < 5
    assert (hangs["state"], hangs["idle_minutes"]) == ("UNKNOWN", None)
    assert "no answer within 1 s" in hangs["state_reason"]
    assert (well["state"], well["idle_minutes"] is None) == ("RUNNING", False)


def test_another_services_idle_minutes_are_not_ours(driver: FakeDriver, server: TaoServer) -> None:
    assert look(entry(driver, server.url, job_id="job-7"))[0]["idle_minutes"] is None


def test_prices_that_cannot_be_read_cost_the_list_nothing_but_the_costs(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAO_INF_PRICING", "/nowhere/prices.yaml")
    (facts,) = look(entry(driver))
    assert (facts["state"], facts["cost_usd"]) == ("RUNNING", None)
    assert "/nowhere/prices.yaml" in facts["unpriced_because"]
    assert "/nowhere/prices.yaml" in capfd.readouterr().err


def test_nothing_registered_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_INF_PRICING", "/nowhere/prices.yaml")
    assert live_facts.look([]) == {}

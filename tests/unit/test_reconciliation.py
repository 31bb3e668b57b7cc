"""What reconcile makes of every difference between the registry and the platforms."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import replace
from typing import Any, NoReturn

import pytest
from doubles.fake_driver import FakeDriver

from inference_service import platforms, reconciliation
from inference_service.contracts import PlatformStatus, ServiceEntry, StartedService, State
from inference_service.errors import ToolError
from inference_service.reconciliation import reconcile
from inference_service.registry import Registry


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The platform `fake`; beside it is `broken`, whose client library is missing."""
    fake, broken = FakeDriver(), FakeDriver(name="broken")

    def missing(*arguments: Any) -> NoReturn:
        raise ModuleNotFoundError("No module named 'client'")

    broken.on_discover = broken.on_status = broken.on_stop = missing
    monkeypatch.setattr(platforms, "names", lambda: ["broken", "fake"])
    monkeypatch.setattr(platforms, "load", {"fake": fake, "broken": broken}.__getitem__)
    monkeypatch.setattr(reconciliation, "_LATE_ARRIVAL_SECONDS", 0.3)
    return fake


@pytest.fixture
def registry() -> Registry:
    return Registry()


def service(job_id: str | None = None) -> StartedService:
    return StartedService(
        job_id or str(uuid.uuid4()), "smollm2", "fake", "http://localhost:8123", "image:1", "org/model", 2, "id-7",
        8123, "http://inside:8080", "2026-11-24T10:00:00+00:00", {"pid": 7},
    )  # fmt: skip


def dead_reservation(registry: Registry) -> ServiceEntry:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    entry = ServiceEntry(
        str(uuid.uuid4()), "smollm2", "fake", "http://localhost:8123", "starting", host_port=8123,
        reserved_by={"pid": child.pid, "started": 1.0},
    )  # fmt: skip
    registry.write(entry)
    return entry


def registered(registry: Registry, driver: FakeDriver, runs: bool, **changes: Any) -> ServiceEntry:
    entry = replace(registry.commit(service()), **changes)
    registry.write(entry)
    if runs:
        driver.running[entry.job_id] = service(entry.job_id)
    return entry


def test_what_runs_and_is_not_registered_is_adopted_with_all_its_fields(driver: FakeDriver, registry: Registry) -> None:
    running = service()
    driver.running[running.job_id] = running
    assert reconcile(registry).adopted == (running.job_id,)
    entry = registry.read().services[running.job_id]
    for name in (
        "network_arch",
        "platform",
        "host_url",
        "image",
        "model_path",
        "num_gpus",
        "platform_job_id",
        "host_port",
    ):
        assert getattr(entry, name) == getattr(running, name), name
    assert (entry.docker_url, entry.status, entry.extras["pid"]) == ("http://inside:8080", "running", 7)
    assert entry.started_at == running.started_at
    assert registry.read().latest == running.job_id
    assert reconcile(registry) == reconciliation.ReconcileReport((), (), (), (), ())


def test_what_is_gone_is_marked_or_when_asked_removed_with_its_leftovers(
    driver: FakeDriver, registry: Registry
) -> None:
    entry = registered(registry, driver, runs=False)
    assert reconcile(registry).gone == (entry.job_id,)
    assert registry.read().services[entry.job_id].status == "gone"
    assert registry.read().latest is None
    report = reconcile(registry, remove_gone=True)
    assert (report.removed, report.gone) == ((entry.job_id,), ())
    assert driver.stopped == [entry.job_id]
    assert registry.read().services == {}


def test_what_was_marked_gone_and_runs_is_running_again(driver: FakeDriver, registry: Registry) -> None:
    entry = registered(registry, driver, runs=True, status="gone")
    assert reconcile(registry, remove_gone=True).adopted == (entry.job_id,)
    assert registry.read().services[entry.job_id].status == "running"


def test_what_cannot_be_asked_about_is_left_alone_and_said(driver: FakeDriver, registry: Registry) -> None:
    driver.on_status = lambda entry: PlatformStatus(State.UNKNOWN, "the daemon does not answer")
    here = registered(registry, driver, runs=False)
    broken = registered(registry, driver, runs=False, platform="broken")
    strange = registered(registry, driver, runs=False, platform="moon-base")
    before = registry.read()
    report = reconcile(registry, remove_gone=True)
    assert registry.read() == before
    assert {item["job_id"]: item["reason"] for item in report.unknown} == {
        here.job_id: "the daemon does not answer",
        broken.job_id: "No module named 'client'",
        strange.job_id: "there is no platform 'moon-base' here",
    }


def test_a_platform_that_cannot_list_still_tells_of_single_services(driver: FakeDriver, registry: Registry) -> None:
    def unlisted() -> NoReturn:
        raise ToolError("forbidden", "may not list")

    driver.on_discover = unlisted
    alive, gone = registered(registry, driver, runs=True), registered(registry, driver, runs=False)
    report = reconcile(registry)
    assert report.gone == (gone.job_id,)
    assert registry.read().services[alive.job_id].status == "running"


def test_a_start_that_died_after_its_service_came_to_life_is_completed(driver: FakeDriver, registry: Registry) -> None:
    entry = dead_reservation(registry)
    driver.running[entry.job_id] = service(entry.job_id)
    assert reconcile(registry).settled == (entry.job_id,)
    found = registry.read().services[entry.job_id]
    assert (found.status, found.reserved_by) == ("running", None)


def test_a_start_that_died_before_that_is_cleared_away(driver: FakeDriver, registry: Registry) -> None:
    entry = dead_reservation(registry)
    assert reconcile(registry).settled == (entry.job_id,)
    assert driver.stopped == [entry.job_id]
    assert registry.read().services == {}


def test_what_the_dead_starter_asked_for_last_may_still_arrive(driver: FakeDriver, registry: Registry) -> None:
    entry = dead_reservation(registry)
    asked: list[ServiceEntry] = []

    def late(about: ServiceEntry) -> None:
        asked.append(about)
        if len(asked) == 2:
            driver.running[entry.job_id] = service(entry.job_id)

    driver.on_status = late
    assert reconcile(registry).settled == (entry.job_id,)
    assert registry.read().services[entry.job_id].status == "running"


def test_half_a_service_of_a_dead_starter_is_removed(driver: FakeDriver, registry: Registry) -> None:
    entry = dead_reservation(registry)
    driver.on_status = lambda about: PlatformStatus(State.PENDING, "created, never started")
    assert reconcile(registry).settled == (entry.job_id,)
    assert driver.stopped == [entry.job_id]


def test_a_start_that_is_under_way_is_left_alone(driver: FakeDriver, registry: Registry) -> None:
    from inference_service import processes

    entry = replace(dead_reservation(registry), reserved_by=processes.this_process())
    registry.write(entry)
    assert reconcile(registry, remove_gone=True) == reconciliation.ReconcileReport((), (), (), (), ())
    assert registry.read().services[entry.job_id].status == "starting"
    assert driver.stopped == []


def test_leftovers_that_cannot_be_removed_keep_their_entry(driver: FakeDriver, registry: Registry) -> None:
    def stuck(entry: ServiceEntry) -> NoReturn:
        raise ToolError("stuck", "it does not go away")

    driver.on_stop = stuck
    entry = registered(registry, driver, runs=False)
    report = reconcile(registry, remove_gone=True)
    assert "it does not go away" in report.unknown[0]["reason"]
    assert entry.job_id in registry.read().services


def test_the_next_start_settles_what_a_dead_one_left_and_only_that(driver: FakeDriver, registry: Registry) -> None:
    alive, empty = dead_reservation(registry), dead_reservation(registry)
    driver.running[alive.job_id] = service(alive.job_id)
    gone = registered(registry, driver, runs=False)
    reconciliation.settle_reservations(registry, "fake")
    assert {job_id: entry.status for job_id, entry in registry.read().services.items()} == {
        alive.job_id: "running",
        gone.job_id: "running",
    }
    assert driver.stopped == [empty.job_id]


def test_a_service_is_found_on_whatever_platform_runs_it(driver: FakeDriver) -> None:
    running = service()
    driver.running[running.job_id] = running
    assert reconciliation.find(running.job_id) == running
    assert reconciliation.find(str(uuid.uuid4())) is None

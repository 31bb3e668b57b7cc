"""Starting and stopping when any step goes wrong: what runs is registered, and what is registered runs."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from doubles.fake_driver import FakeDriver

from inference_service import lifecycle, output, platforms
from inference_service.contracts import LaunchSpec, PlatformStatus, ServiceEntry, StartedService, State
from inference_service.errors import BadInput, NotReady, PortTaken, ToolError
from inference_service.interruption import held_back
from inference_service.registry import Registry


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The only platform there is."""
    fake = FakeDriver()
    monkeypatch.setattr(platforms, "names", lambda: ["fake"])
    monkeypatch.setattr(platforms, "load", lambda name: fake)
    return fake


@pytest.fixture
def registry() -> Registry:
    return Registry()


def spec(**changes: Any) -> LaunchSpec:
    fields: dict[str, Any] = {
        "job_id": str(uuid.uuid4()), "network_arch": "smollm2", "platform": "fake", "model_path": "hf_model://org/model",
        "image": "image:1", "command": "umask 0 && serve", "env": {}, "secret_env": (), "num_gpus": 0,
        "container_port": 8080,
    }  # fmt: skip
    return LaunchSpec(**{**fields, **changes})


def start(launch: LaunchSpec, registry: Registry) -> ServiceEntry:
    return lifecycle.start(launch, lambda progress: None, registry)


def nothing_is_left(driver: FakeDriver, registry: Registry) -> bool:
    return not driver.running and not registry.read().services


def test_a_started_service_is_registered_as_running_with_its_port_and_is_the_latest(
    driver: FakeDriver, registry: Registry
) -> None:
    entry = start(spec(), registry)
    snapshot = registry.read()
    assert snapshot.services == {entry.job_id: entry}
    assert (entry.status, entry.image, entry.model_path) == ("running", "image:1", "hf_model://org/model")
    assert driver.ports_asked == [entry.host_port]
    assert snapshot.latest == entry.job_id


def test_it_is_reserved_before_the_platform_is_asked(driver: FakeDriver, registry: Registry) -> None:
    seen: list[Any] = []
    driver.on_start = lambda launch: seen.append(registry.read().services[launch.job_id])
    start(spec(), registry)
    assert (seen[0].status, seen[0].reserved_by["pid"]) == ("starting", os.getpid())


FAILURES: list[BaseException] = [
    ToolError("pull_failed", "no such image"),
    BadInput("bad", "refused"),
    RuntimeError("a bug in a driver"),
    KeyboardInterrupt(),
    output.Terminated(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_start_that_fails_or_is_interrupted_leaves_nothing(
    failure: BaseException, driver: FakeDriver, registry: Registry
) -> None:
    def fail(launch: LaunchSpec) -> NoReturn:
        raise failure

    driver.on_start = fail
    with pytest.raises(type(failure)):
        start(spec(), registry)
    assert nothing_is_left(driver, registry)


@pytest.mark.parametrize("failure", FAILURES[:3], ids=lambda failure: type(failure).__name__)
def test_a_driver_that_fails_after_all_and_leaves_its_service_is_cleaned_up_after(
    failure: BaseException, driver: FakeDriver, registry: Registry
) -> None:
    def half_started(launch: LaunchSpec) -> NoReturn:
        driver.running[launch.job_id] = StartedService(launch.job_id, launch.network_arch, "fake", "http://localhost:1")
        raise failure

    driver.on_start = half_started
    with pytest.raises(type(failure)):
        start(spec(), registry)
    assert nothing_is_left(driver, registry)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "disk full"), ToolError("registry_unwritable", "disk full")])
def test_a_service_that_cannot_be_registered_is_stopped_again(
    failure: Exception, driver: FakeDriver, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(started: StartedService) -> NoReturn:
        assert driver.running
        raise failure

    monkeypatch.setattr(registry, "commit", full)
    with pytest.raises(type(failure)):
        start(spec(), registry)
    assert nothing_is_left(driver, registry)


def test_a_registry_that_breaks_while_it_starts_leaves_no_service_running(
    driver: FakeDriver, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> NoReturn:
        raise ToolError("registry_unreadable", "the disk is gone")

    def break_it(launch: LaunchSpec) -> None:
        for name in ("read", "commit", "remove"):
            monkeypatch.setattr(registry, name, broken)

    driver.on_start = break_it
    with pytest.raises(ToolError, match=r"the disk is gone.*registry.py reconcile"):
        start(spec(), registry)
    assert driver.running == {}


def test_what_cannot_be_cleaned_up_stays_registered_and_is_said(driver: FakeDriver, registry: Registry) -> None:
    def half_started(launch: LaunchSpec) -> NoReturn:
        driver.running[launch.job_id] = StartedService(launch.job_id, launch.network_arch, "fake", "http://localhost:1")
        raise ToolError("start_failed", "it broke")

    def stuck(entry: ServiceEntry) -> NoReturn:
        raise ToolError("stuck", "the container does not go away")

    driver.on_start, driver.on_stop = half_started, stuck
    launch = spec()
    with pytest.raises(ToolError) as caught:
        start(launch, registry)
    assert "it broke" in caught.value.message
    assert "still registered" in caught.value.message
    assert "does not go away" in caught.value.message
    assert caught.value.details["left_behind"] == launch.job_id
    assert launch.job_id in registry.read().services


def test_a_platform_that_is_not_reachable_at_all_leaves_no_entry(driver: FakeDriver, registry: Registry) -> None:
    def unreachable(*arguments: Any) -> NoReturn:
        raise ToolError("no_engine", "the daemon does not answer")

    driver.on_start = driver.on_stop = driver.on_status = unreachable
    with pytest.raises(ToolError, match="the daemon does not answer"):
        start(spec(), registry)
    assert registry.read().services == {}


def test_a_port_that_a_stranger_took_is_exchanged_for_another(driver: FakeDriver, registry: Registry) -> None:
    def taken_twice(launch: LaunchSpec) -> None:
        assert launch.host_port is not None
        if len(driver.ports_asked) < 3:
            raise PortTaken(launch.host_port)

    driver.on_start = taken_twice
    entry = start(spec(), registry)
    assert len(set(driver.ports_asked)) == 3
    assert entry.host_port == driver.ports_asked[-1]
    assert len(registry.read().services) == 1


def test_ports_are_not_tried_for_ever_and_not_at_all_when_the_user_chose_one(
    driver: FakeDriver, registry: Registry
) -> None:
    def always_taken(launch: LaunchSpec) -> NoReturn:
        assert launch.host_port is not None
        raise PortTaken(launch.host_port)

    driver.on_start = always_taken
    with pytest.raises(PortTaken):
        start(spec(), registry)
    assert 2 < len(driver.ports_asked) < 50
    driver.ports_asked.clear()
    with pytest.raises(PortTaken):
        start(spec(host_port=driver_port()), registry)
    assert len(driver.ports_asked) == 1
    assert nothing_is_left(driver, registry)


def driver_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_job_id_that_runs_already_is_refused_and_not_touched(driver: FakeDriver, registry: Registry) -> None:
    launch = spec()
    first = start(launch, registry)
    with pytest.raises(BadInput, match=launch.job_id):
        start(launch, registry)
    assert registry.read().services == {launch.job_id: first}
    assert (list(driver.running), driver.stopped) == ([launch.job_id], [])


def test_a_secret_that_is_not_set_is_refused_before_anything_changes(driver: FakeDriver, registry: Registry) -> None:
    with pytest.raises(BadInput, match="HF_TOKEN"):
        start(spec(secret_env=("HF_TOKEN",)), registry)
    assert not registry.path.exists()
    assert driver.ports_asked == []


def interrupted_during(step: str, driver: FakeDriver, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a real SIGINT arrive inside that step."""
    if step == "start":
        driver.on_start = lambda launch: signal.raise_signal(signal.SIGINT)
        return
    whole: Callable[..., Any] = getattr(registry, step)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return whole(*arguments, **options)

    monkeypatch.setattr(registry, step, interrupted)


@pytest.mark.parametrize("step", ["reserve", "start"])
def test_ctrl_c_before_it_is_registered_undoes_everything(
    step: str, driver: FakeDriver, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_during(step, driver, registry, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as caught:
        start(spec(), registry)
    assert caught.value.args == ()
    assert nothing_is_left(driver, registry)


def test_ctrl_c_while_it_is_being_registered_leaves_it_running_registered_and_said(
    driver: FakeDriver, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_during("commit", driver, registry, monkeypatch)
    launch = spec()
    with pytest.raises(KeyboardInterrupt) as caught:
        start(launch, registry)
    assert registry.read().services[launch.job_id].status == "running"
    assert launch.job_id in driver.running
    message, fix = caught.value.args
    assert f"{launch.job_id} keeps running and is registered" in message
    assert f"stop_service.py --job-id {launch.job_id}" in fix


def test_a_second_ctrl_c_does_not_break_into_the_clean_up(driver: FakeDriver, registry: Registry) -> None:
    def interrupt(launch: LaunchSpec) -> NoReturn:
        driver.running[launch.job_id] = StartedService(launch.job_id, launch.network_arch, "fake", "http://localhost:1")
        raise KeyboardInterrupt

    driver.on_start = interrupt
    driver.on_stop = lambda entry: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(spec(), registry)
    assert nothing_is_left(driver, registry)


def test_a_service_that_dies_at_once_is_an_error_with_its_log_and_is_discarded(
    driver: FakeDriver, registry: Registry
) -> None:
    entry = start(spec(), registry)
    driver.running.clear()
    with pytest.raises(ToolError) as caught:
        lifecycle.require_alive(entry, driver)
    assert lifecycle.discard(entry, registry, caught.value)
    assert "stopped and unregistered" in caught.value.message
    assert caught.value.details["log_tail"] == driver.log
    assert nothing_is_left(driver, registry)


def test_stop_forgets_what_it_stopped_and_keeps_what_it_could_not_stop(driver: FakeDriver, registry: Registry) -> None:
    entries = [start(spec(), registry) for _ in range(3)]

    def stuck(entry: ServiceEntry) -> None:
        if entry.job_id == entries[2].job_id:
            raise ToolError("stuck", "it does not go away")

    driver.on_stop = stuck
    done = lifecycle.stop(entries, registry)
    assert done.stopped == (entries[0].job_id, entries[1].job_id)
    assert done.failed == ({"job_id": entries[2].job_id, "message": "it does not go away"},)
    assert list(registry.read().services) == [entries[2].job_id]
    driver.on_stop = lambda entry: None
    assert lifecycle.stop([entries[2]], registry).stopped == (entries[2].job_id,)
    assert nothing_is_left(driver, registry)


def test_latest_moves_to_the_one_started_last_of_those_left(driver: FakeDriver, registry: Registry) -> None:
    first, second, third = (start(spec(), registry) for _ in range(3))
    assert registry.read().latest == third.job_id
    lifecycle.stop([third], registry)
    assert registry.read().latest == second.job_id
    lifecycle.stop([second, first], registry)
    assert registry.read().latest is None


def test_stopping_what_is_gone_already_is_success(driver: FakeDriver, registry: Registry) -> None:
    entry = start(spec(), registry)
    driver.running.clear()
    assert lifecycle.stop([entry], registry).stopped == (entry.job_id,)
    assert lifecycle.stop([entry], registry).stopped == (entry.job_id,)


def test_many_are_stopped_at_the_same_time(driver: FakeDriver, registry: Registry) -> None:
    entries = [start(spec(), registry) for _ in range(8)]
    together = threading.Barrier(8, timeout=10)

    def wait_for_the_others(entry: ServiceEntry) -> None:
        together.wait()

    driver.on_stop = wait_for_the_others
    assert len(lifecycle.stop(entries, registry).stopped) == 8


def test_a_service_of_a_platform_that_is_not_here_is_said_and_kept(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ServiceEntry(str(uuid.uuid4()), "smollm2", "moon-base", "http://localhost:1")
    registry.write(entry)
    done = lifecycle.stop([entry], registry)
    assert "moon-base" in done.failed[0]["message"]
    assert entry.job_id in registry.read().services


def test_what_another_process_is_starting_is_not_stopped_under_its_hands(
    driver: FakeDriver, registry: Registry
) -> None:
    entry = registry.reserve(spec(), needs_host_port=False)
    done = lifecycle.stop([entry], registry)
    assert f"kill {os.getpid()}" in done.failed[0]["message"]
    assert entry.job_id in registry.read().services


def test_an_interrupted_stop_finishes_what_it_began_and_says_what_is_left(
    driver: FakeDriver, registry: Registry
) -> None:
    entries = [start(spec(), registry) for _ in range(20)]
    began = threading.Event()

    def slowly(entry: ServiceEntry) -> None:
        began.set()
        time.sleep(0.3)

    driver.on_stop = slowly

    def interrupt() -> None:
        began.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        lifecycle.stop(entries, registry)
    assert 0 < len(driver.stopped) < 20
    assert set(registry.read().services) == set(driver.running)
    for job_id in driver.running:
        assert job_id in caught.value.args[0]


def test_waiting_for_a_start_follows_it_until_it_is_registered(driver: FakeDriver, registry: Registry) -> None:
    launch = spec()
    reserved = registry.reserve(launch, needs_host_port=True)
    started = StartedService(launch.job_id, "smollm2", "fake", "http://localhost:1")
    threading.Timer(0.3, registry.commit, [started]).start()
    assert lifecycle.until_started(reserved, registry, 5, lambda progress: None).status == "running"
    registry.remove(launch.job_id)
    reserved = registry.reserve(launch, needs_host_port=True)
    with pytest.raises(NotReady):
        lifecycle.until_started(reserved, registry, 0.2, lambda progress: None)
    threading.Timer(0.2, registry.remove, [launch.job_id]).start()
    with pytest.raises(ToolError, match="was not started"):
        lifecycle.until_started(reserved, registry, 5, lambda progress: None)


def test_an_interruption_is_held_back_until_the_step_is_done() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        with held_back():
            signal.raise_signal(signal.SIGINT)
            steps.append("done")
        steps.append("never")
    with held_back(deliver=False):
        signal.raise_signal(signal.SIGINT)
    assert steps == ["done"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_status_that_cannot_be_had_says_nothing(driver: FakeDriver, registry: Registry) -> None:
    driver.on_status = lambda entry: PlatformStatus(State.UNKNOWN, "no answer")
    entry = start(spec(), registry)
    lifecycle.require_alive(entry, driver)
    assert entry.job_id in registry.read().services

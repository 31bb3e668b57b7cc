"""What may be stopped because nobody needs it, and what never: judged for each service at the last moment."""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests
from doubles.fake_driver import FakeDriver
from doubles.tao_server import CHAT, LIVENESS, READINESS, Answer, TaoServer
from support import eventually

from inference_service import platforms, processes, request_log, upkeep
from inference_service.contracts import ServiceEntry, StartedService
from inference_service.errors import BadInput, ToolError
from inference_service.lifecycle import StopReport, stop
from inference_service.registry import Registry
from inference_service.request_log import LoggedRequest, Outcome

HALF_AN_HOUR = 1800.0
NOW = datetime.now(timezone.utc)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(platforms, "load", lambda name: fake)
    return fake


@pytest.fixture
def job_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def server(job_id: str) -> Iterator[TaoServer]:
    """A service that has had no request for 31 minutes."""
    with TaoServer(job_id, idle_minutes=31) as server:
        yield server


def registered(job_id: str, driver: FakeDriver, url: str = "", **fields: Any) -> ServiceEntry:
    driver.running[job_id] = StartedService(job_id, "cosmos-rl", "fake", url)
    entry = ServiceEntry(job_id, "cosmos-rl", "fake", url, started_at=NOW.isoformat(), **fields)
    Registry().write(entry)
    return entry


def run(expired: bool = False, idle_seconds: float | None = None) -> StopReport:
    registry = Registry()
    entries = list(registry.read().services.values())
    return stop(entries, registry, upkeep.Upkeep(registry, expired, idle_seconds).reason_to_keep)


def reason(done: StopReport) -> str:
    assert (done.stopped, done.failed) == ((), ())
    (kept,) = done.kept
    return kept["reason"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172800), ("0.5s", 0.5)]
)
def test_a_duration_is_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert upkeep.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "m", "-5m", "0m", "0.0h", "1e3s", "30 m", "٣m", "30M", "inf", "nanh", "1h30m"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        upkeep.duration(text)
    assert "--idle 30m" in refused.value.fix


def test_past_its_deadline_it_is_stopped_and_before_it_or_without_one_it_is_kept(driver: FakeDriver) -> None:
    registered("past", driver, stop_after=(NOW - timedelta(seconds=1)).isoformat())
    registered("before", driver, stop_after=(NOW + timedelta(hours=1)).isoformat())
    registered("without", driver)
    registered("unreadable", driver, stop_after="tomorrow")
    done = run(expired=True)
    assert done.stopped == ("past",)
    assert {kept["job_id"]: kept["reason"][:20] for kept in done.kept} == {
        "before": "it may run until 202",
        "without": "it was started witho",
        "unreadable": "its stop_after is no",
    }
    assert set(driver.running) == set(Registry().read().services) == {"before", "without", "unreadable"}


def test_what_is_gone_or_was_left_by_a_dead_start_is_cleared_away_when_its_time_is_up(driver: FakeDriver) -> None:
    past = (NOW - timedelta(hours=1)).isoformat()
    registered("gone", driver, status="gone", stop_after=past)
    registered("dead", driver, status="starting", reserved_by={"pid": 1, "started": 1.0}, stop_after=past)
    assert set(run(expired=True).stopped) == {"gone", "dead"}
    assert Registry().read().services == {}


def test_a_service_that_is_being_started_is_never_stopped(driver: FakeDriver, server: TaoServer, job_id: str) -> None:
    past = (NOW - timedelta(hours=1)).isoformat()
    registered(job_id, driver, server.url, status="starting", reserved_by=processes.this_process(), stop_after=past)
    assert "still starting it" in reason(run(expired=True, idle_seconds=1))
    assert driver.stopped == []


def test_an_idle_service_is_stopped_and_one_that_was_used_lately_is_kept(
    driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    registered(job_id, driver, server.url)
    assert "31" in reason(run(idle_seconds=2 * HALF_AN_HOUR))
    assert run(idle_seconds=HALF_AN_HOUR).stopped == (job_id,)
    assert (driver.running, Registry().read().services) == ({}, {})


def test_with_both_either_is_enough_and_both_reasons_are_told(
    driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    entry = registered(job_id, driver, server.url, stop_after=(NOW + timedelta(hours=1)).isoformat())
    told = reason(run(expired=True, idle_seconds=2 * HALF_AN_HOUR))
    assert "it may run until" in told
    assert "its last request was 31" in told
    assert run(expired=True, idle_seconds=HALF_AN_HOUR).stopped == (job_id,)
    registered(job_id, driver, server.url, stop_after=(NOW - timedelta(hours=1)).isoformat())
    assert run(expired=True, idle_seconds=2 * HALF_AN_HOUR).stopped == (entry.job_id,)


@pytest.mark.parametrize("state", ["initializing", "loading", "not_loaded", "failed", "initialization_failed"])
def test_what_is_not_ready_is_not_idle_however_long_that_lasts(
    state: str, driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    registered(job_id, driver, server.url)
    server.become(state)
    idle = {"job_id": job_id, "model_loaded": True, "idle_time_minutes": 500}
    server.always(LIVENESS, Answer(body=idle))
    assert "not ready" in reason(run(idle_seconds=1))


IDLE = {"model_loaded": True, "model_loading": False, "server_initializing": False, "idle_time_minutes": 500}


@pytest.mark.parametrize(
    "said",
    [
        {"model_loaded": False},
        {"model_loaded": "yes"},
        {"model_loading": True},
        {"server_initializing": True},
        {"idle_time_minutes": None},
        {"idle_time_minutes": "500"},
        {"idle_time_minutes": True},
        {"idle_time_minutes": -1},
        {"idle_time_minutes": float("nan")},
        {"idle_time_minutes": float("inf")},
        {"job_id": None},
        {"job_id": "another"},
    ],
    ids=str,
)
def test_in_doubt_it_is_kept(said: dict[str, Any], driver: FakeDriver, server: TaoServer, job_id: str) -> None:
    registered(job_id, driver, server.url)
    server.always(LIVENESS, Answer(body={"job_id": job_id, **IDLE, **said}))
    assert reason(run(idle_seconds=1))
    server.always(LIVENESS, Answer(body={"job_id": job_id, **IDLE}))
    assert run(idle_seconds=1).stopped == (job_id,), "the answer without the doubt is that of an idle service"


@pytest.mark.parametrize(
    "answer",
    [Answer(status=500, body={"job_id": "x"}), Answer(body="<html>", content_type="text/html"), Answer(reset="late")],
    ids=["error", "page", "reset"],
)
@pytest.mark.parametrize("path", [LIVENESS, READINESS])
def test_no_answer_is_no_idleness(
    path: str, answer: Answer, driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    registered(job_id, driver, server.url)
    server.always(path, answer)
    assert reason(run(idle_seconds=1))


def test_who_is_out_of_reach_or_another_in_its_place_is_kept(driver: FakeDriver, server: TaoServer) -> None:
    registered("silent", driver, "http://127.0.0.1:9")
    registered("foreign", driver, server.url)
    registered("nowhere", driver, "")
    registered("gone", driver, server.url, status="gone")
    done = run(idle_seconds=1)
    assert done.stopped == ()
    assert {kept["job_id"] for kept in done.kept} == {"silent", "foreign", "nowhere", "gone"}
    assert driver.stopped == []


def test_a_dead_tunnel_is_opened_again_to_ask_and_one_that_cannot_be_is_a_reason_to_keep_it(
    driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    registered(job_id, driver, "http://127.0.0.1:9")

    def fail(entry: ServiceEntry) -> ServiceEntry:
        raise ToolError("no_tunnel", "the login host does not answer")

    driver.on_reach = fail
    assert reason(run(idle_seconds=1)) == "the login host does not answer"
    driver.on_reach = lambda entry: replace(entry, host_url=server.url)
    assert run(idle_seconds=1).stopped == (job_id,)


@contextlib.contextmanager
def asking(server: TaoServer, seconds: float) -> Iterator[None]:
    """A request that the service works on for so long."""
    server.script(CHAT, Answer(text="at last", delay=seconds))
    body = {"messages": [{"role": "user", "content": "a long film"}]}
    thread = threading.Thread(target=lambda: requests.post(server.url + CHAT, json=body, timeout=60))
    thread.start()
    eventually(lambda: server.requests)
    yield
    thread.join()


def test_a_request_in_progress_keeps_it_although_the_servers_clock_runs_on(
    driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    registered(job_id, driver, server.url)
    with asking(server, 3):
        # It arrived an hour ago and is still being computed.
        server.started -= 7200
        server.last_request -= 3600
        assert server.idle_minutes >= 60
        assert "somebody is connected" in reason(run(idle_seconds=HALF_AN_HOUR))
    assert run(idle_seconds=HALF_AN_HOUR).stopped == (job_id,)


def test_a_request_in_progress_gets_its_answer_before_a_service_that_is_past_its_deadline_is_stopped(
    driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    registered(job_id, driver, server.url, stop_after=(NOW - timedelta(hours=1)).isoformat())
    with asking(server, 3):
        assert "somebody is connected" in reason(run(expired=True))
    assert run(expired=True).stopped == (job_id,)


def test_a_request_without_an_outcome_in_the_log_keeps_it_a_day_at_most(
    driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    registered(job_id, driver, server.url)
    log = request_log.open()

    def sent(request_id: str, ago: timedelta, to: str = job_id) -> None:
        log.begin(
            LoggedRequest(request_id, datetime.now(timezone.utc) - ago, "alice", to, "cosmos-rl", None, "fake", CHAT)
        )

    sent("killed-long-ago", timedelta(hours=25))
    sent("of-another", timedelta(minutes=1), to="another")
    sent("running", timedelta(hours=3))
    assert "running of alice" in reason(run(idle_seconds=HALF_AN_HOUR))
    log.finish("running", Outcome(total_seconds=1))
    assert run(idle_seconds=HALF_AN_HOUR).stopped == (job_id,)


def test_a_service_that_another_program_stops_meanwhile_is_not_stopped_twice(
    driver: FakeDriver, server: TaoServer, job_id: str
) -> None:
    entry = registered(job_id, driver, server.url)
    registry = Registry()
    registry.remove(job_id)
    done = stop([entry], registry, upkeep.Upkeep(registry, True, 1).reason_to_keep)
    assert "another program" in reason(done)
    assert driver.stopped == []


def test_a_request_just_before_the_stop_is_noticed(driver: FakeDriver, server: TaoServer, job_id: str) -> None:
    registered(job_id, driver, server.url)
    registry = Registry()
    judge = upkeep.Upkeep(registry, False, HALF_AN_HOUR)

    def used_between(entry: ServiceEntry) -> str:
        assert judge.reason_to_keep(entry) == "", "it was idle when it was chosen"
        server.used()
        return judge.reason_to_keep(entry)

    assert "its last request was 0 min ago" in reason(
        stop(list(registry.read().services.values()), registry, used_between)
    )


def test_a_port_of_ours_that_a_stranger_merely_listens_on_is_no_connection(driver: FakeDriver, job_id: str) -> None:
    from inference_service import idleness

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert not idleness._connected(ServiceEntry(job_id, "a", "fake", f"http://localhost:{port}"))
        with socket.create_connection(("127.0.0.1", port)):
            assert idleness._connected(ServiceEntry(job_id, "a", "fake", f"http://localhost:{port}"))
            assert not idleness._connected(ServiceEntry(job_id, "a", "fake", f"http://10.0.0.1:{port}"))

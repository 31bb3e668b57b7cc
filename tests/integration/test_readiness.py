"""Waiting for a service, against a server that speaks as the real ones do (doubles/tao_server.py)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from doubles.fake_driver import FakeDriver
from doubles.tao_server import LIVENESS, READINESS, Answer, TaoServer

from inference_service import http_session, readiness
from inference_service.contracts import PlatformStatus, Progress, ServiceEntry, StartedService, State
from inference_service.errors import NotReady, ToolError

JOB = "5f0c6b7e-0000-4000-8000-000000000001"


@dataclass
class Waited:
    seconds: float
    lag: float
    said: list[Progress] = field(default_factory=list)


def entry_of(server: TaoServer | str) -> ServiceEntry:
    url = server if isinstance(server, str) else server.url
    return ServiceEntry(JOB, "tao-dataservices", "fake", url, model_path="org/model")


def driver_that_runs() -> FakeDriver:
    return FakeDriver(running={JOB: StartedService(JOB, "tao-dataservices", "fake", "")})


def wait(server: TaoServer, timeout: float = 10, driver: FakeDriver | None = None) -> Waited:
    said: list[Progress] = []
    seconds = readiness.wait(entry_of(server), driver or driver_that_runs(), timeout, said.append)
    return Waited(seconds, time.monotonic() - max(server.ready_at, time.monotonic() - seconds), said)


def failing(server: TaoServer | str, timeout: float = 20, driver: FakeDriver | None = None) -> tuple[ToolError, float]:
    began = time.monotonic()
    with pytest.raises(ToolError) as caught:
        readiness.wait(entry_of(server), driver or driver_that_runs(), timeout, lambda progress: None)
    return caught.value, time.monotonic() - began


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("shape", ["reason", "error"])
@pytest.mark.parametrize("load_seconds", [0.0, 0.4, 2.0])
def test_it_is_reported_ready_soon_after_it_is_and_never_before(shape: str, load_seconds: float) -> None:
    with TaoServer(JOB, initialize_seconds=0.1, load_seconds=load_seconds, shape=shape) as server:
        waited = wait(server)
    # Half a second is what the poll schedule gives, by its own test and by bench/readiness.py; a busy machine adds.
    assert waited.lag < 2
    assert waited.seconds >= load_seconds


@pytest.mark.parametrize("shape", ["reason", "error"])
@pytest.mark.parametrize(
    ("state", "types"),
    [
        ("failed", {"model_load_failed", "model_load_error"}),
        ("initialization_failed", {"initialization_failed", "initialization_error"}),
    ],
)
def test_a_failed_load_is_an_error_at_once_with_the_reason_and_the_log(shape: str, state: str, types: set[str]) -> None:
    with TaoServer(JOB, load_seconds=0.5, fail=state, shape=shape, why="no such repository") as server:
        error, seconds = failing(server)
    assert seconds < 1.5
    assert error.type in types
    assert error.exit_status == 1
    assert "no such repository" in error.message
    assert error.details["log_tail"] == ["loading", "out of memory"]


def test_an_error_that_only_liveness_tells_is_one_too() -> None:
    with TaoServer(JOB, fail="failed") as server:
        server.always(
            READINESS, Answer(503, body={"status": "not_ready", "reason": "model_not_loaded", "message": "?"})
        )
        error, seconds = failing(server)
    assert (error.type, seconds < 1.5) == ("service_failed", True)


def test_a_dead_container_is_an_error_at_once_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verySecretValue")
    driver = FakeDriver(log=[f"line {number}" for number in range(100)] + ["token hf_verySecretValue refused"])
    error, seconds = failing(f"http://127.0.0.1:{free_port()}", driver=driver)
    assert seconds < 1.5
    assert error.type == "service_died"
    assert "exited with status 1" in error.message
    assert error.details["log_tail"] == [f"line {number}" for number in range(81, 100)] + ["token [redacted] refused"]


def test_a_container_that_dies_while_it_loads_is_noticed_within_a_second() -> None:
    driver = driver_that_runs()
    with TaoServer(JOB, load_seconds=60) as server:
        threading.Timer(1.0, driver.running.clear).start()
        error, seconds = failing(server, driver=driver)
    assert error.type == "service_died"
    assert seconds < 2.5


def test_a_platform_that_cannot_be_asked_is_said_and_is_no_verdict() -> None:
    def unreachable(entry: ServiceEntry) -> PlatformStatus:
        raise ToolError("no_engine", "the daemon does not answer")

    driver = driver_that_runs()
    driver.on_status = unreachable
    with TaoServer(JOB, load_seconds=1.2) as server:
        waited = wait(server, driver=driver)
    assert any("the daemon does not answer" in progress.message for progress in waited.said)


def test_the_status_is_asked_at_most_every_half_second_however_slow_it_is() -> None:
    asked: list[float] = []

    def slow(entry: ServiceEntry) -> PlatformStatus:
        asked.append(time.monotonic())
        time.sleep(0.1)
        return PlatformStatus(State.RUNNING)

    driver = driver_that_runs()
    driver.on_status = slow
    with TaoServer(JOB, load_seconds=2.5) as server:
        assert wait(server, driver=driver).lag < 0.5
    assert 1 <= len(asked) <= 5


@pytest.mark.parametrize("shape", ["reason", "error"])
def test_another_service_on_our_port_is_an_error_and_not_readiness(shape: str) -> None:
    with TaoServer("9e7a0000-0000-4000-8000-000000000009", shape=shape) as server:
        error, seconds = failing(server)
    assert (error.type, error.details["foreign_job_id"]) == ("foreign_service", server.job_id)
    assert seconds < 1


def test_a_server_that_names_no_job_id_is_ready_only_while_ours_is_alive() -> None:
    with TaoServer(None) as server:
        assert wait(server).lag < 0.5
        error, _ = failing(server, driver=FakeDriver())
    assert error.type == "service_died"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(reset="early"),
        Answer(truncate=12, body={"status": "ready", "job_id": JOB}),
        Answer(200, body="<html>It works!</html>", content_type="text/html"),
        Answer(200, body=b""),
        Answer(404, body="not found", content_type="text/plain"),
        Answer(302, body="", headers={"Location": "http://127.0.0.1:1/"}),
        Answer(500, body={"error": "boom"}),
    ],
    ids=["reset", "half a body", "a web page", "empty", "404", "redirect", "500"],
)
def test_what_is_no_readiness_answer_is_survived_until_the_real_one_comes(answer: Answer) -> None:
    with TaoServer(JOB) as server:
        server.script(READINESS, *[answer] * 5)
        waited = wait(server)
    assert 0.1 < waited.seconds < 2


def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    port = free_port()
    late = threading.Event()

    def serve_late() -> None:
        late.wait(1.0)
        with TaoServer(JOB, port=port):
            late.wait(5)

    thread = threading.Thread(target=serve_late)
    thread.start()
    try:
        seconds = readiness.wait(entry_of(f"http://127.0.0.1:{port}"), driver_that_runs(), 10, lambda progress: None)
    finally:
        late.set()
        thread.join()
    assert 0.9 < seconds < 1.6


@contextmanager
def listening_and_silent() -> Iterator[str]:
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_a_server_that_never_answers_does_not_hold_it_past_its_timeout() -> None:
    with listening_and_silent() as url:
        error, seconds = failing(url, timeout=1.0)
    assert isinstance(error, NotReady)
    assert 0.9 < seconds < 1.5
    assert "no answer within" in error.message


def test_a_body_that_trickles_does_not_hold_it_past_its_timeout() -> None:
    with closing(socket.socket()) as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        over = threading.Event()

        def trickle() -> None:
            connection, _ = slow.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                while not over.wait(0.2):
                    connection.sendall(b" ")

        threading.Thread(target=trickle, daemon=True).start()
        error, seconds = failing(f"http://127.0.0.1:{slow.getsockname()[1]}", timeout=1.5)
        over.set()
    assert isinstance(error, NotReady)
    assert seconds < 2.2


def test_the_timeout_is_exit_status_4_with_what_was_last_seen() -> None:
    with TaoServer(JOB, load_seconds=60) as server:
        error, seconds = failing(server, timeout=1.0)
    assert isinstance(error, NotReady)
    assert error.exit_status == 4
    assert 0.9 < seconds < 1.5
    last_seen: dict[str, Any] = error.details["last_seen"]
    assert (last_seen["state"], last_seen["http_status"], last_seen["stage"]) == ("model_loading", 503, "loading_model")
    assert f"wait_ready.py --job-id {JOB}" in error.fix


def test_the_progress_of_the_loading_is_shown_once_per_change() -> None:
    with TaoServer(JOB, initialize_seconds=2, load_seconds=4) as server:
        said = wait(server).said
    stages = [progress.stage for progress in said]
    assert stages == sorted(set(stages), key=stages.index)
    assert {"initializing", "loading_model"} <= set(stages)
    loading = next(progress for progress in said if progress.stage == "loading_model")
    assert "Ready for inference" in loading.message
    assert loading.details["remaining_steps"] == ["Complete model loading", "Ready for inference"]


def test_a_proxy_of_the_environment_is_not_asked_for_a_service_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with TaoServer(JOB) as server:
        assert wait(server, timeout=3).lag < 0.5
        by_name = ServiceEntry(JOB, "a", "fake", server.url.replace("127.0.0.1", "localhost"))
        assert readiness.wait(by_name, driver_that_runs(), 3, lambda progress: None) < 1
    assert http_session.session_for(ServiceEntry(JOB, "a", "fake", "http://gpu.example.com:8080")).trust_env


def test_liveness_is_not_hammered() -> None:
    with TaoServer(JOB, load_seconds=2.0) as server:
        wait(server)
        asked = [path for _, path in server.polls]
    assert asked.count(LIVENESS) <= 5
    # Some 30 where nothing else runs; what matters is that the one is asked more often than the other.
    assert asked.count(READINESS) > asked.count(LIVENESS)


@pytest.mark.parametrize("url", ["localhost:8080", "http://", "ftp://localhost/", "http://[::1"])
def test_a_host_url_that_is_none_is_an_error_and_not_a_long_wait(url: str) -> None:
    error, seconds = failing(url)
    assert error.type == "bad_host_url"
    assert seconds < 1

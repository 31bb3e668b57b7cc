"""The smollm2 microservice is not idle while it answers, however that ends: over HTTP, with a model that waits."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from smollm2_process import CHAT, LIVENESS, QUESTION
from support import eventually, need_engine

from inference_service.microservices.smollm2.model import RequestError
from inference_service.microservices.smollm2.server import application
from inference_service.microservices.smollm2.service import Service


class WaitingModel:
    """Answers when it is told to."""

    name = "waiting"

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.set()
        self.go_on.wait(30)
        if self.error:
            raise self.error
        return {"choices": []}

    def stream(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"choices": []}
        self.asked.set()
        while not self.go_on.wait(0.02):
            yield {"choices": []}  # So that the server notices a client that has left.


class Running:
    def __init__(self, service: Service, model: WaitingModel, url: str) -> None:
        self.service, self.model, self.url = service, model, url

    def ask(self, **fields: Any) -> requests.Response:
        return requests.post(self.url + CHAT, json={"messages": QUESTION, **fields}, timeout=30)

    def liveness(self) -> dict[str, Any]:
        document: dict[str, Any] = requests.get(self.url + LIVENESS, timeout=30).json()
        return document

    def counts_again(self) -> bool:
        return bool(eventually(lambda: 0 < self.liveness()["idle_time_minutes"] < 1))


@pytest.fixture
def running() -> Iterator[Running]:
    need_engine("smollm2", importlib.util.find_spec("flask") is not None, "flask is not installed")
    from werkzeug.serving import make_server

    service, model = Service("job-1", "m", 30, False), WaitingModel()
    service.model = model  # type: ignore[assignment]
    service._state = "ready"
    service._idle_since = service._last_request = 1000.0  # Long ago.
    server = make_server("127.0.0.1", 0, application(service), threaded=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield Running(service, model, f"http://127.0.0.1:{server.server_port}")
    model.go_on.set()
    server.shutdown()


def test_an_answer_in_progress_is_no_idleness_and_the_clock_starts_when_the_last_one_ends(running: Running) -> None:
    assert running.liveness()["idle_time_minutes"] > 1_000_000
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(running.ask) for _ in range(2)]
        eventually(lambda: running.service._in_use == 2)
        # As if both had come an hour ago: what counts is that they are not answered.
        running.service._idle_since -= 3600
        assert running.liveness()["idle_time_minutes"] == 0
        running.model.go_on.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert running.counts_again()


def test_the_time_of_the_last_request_is_that_of_its_arrival(running: Running) -> None:
    running.model.go_on.set()
    before = running.liveness()["last_request_time"]
    running.ask()
    after = running.liveness()["last_request_time"]
    assert after > before
    assert running.counts_again()
    assert running.liveness()["last_request_time"] == after


def test_a_stream_counts_until_its_end(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, stream=True)
        assert running.model.asked.wait(10)
        assert running.liveness()["idle_time_minutes"] == 0
        running.model.go_on.set()
        assert answer.result().text.endswith("[DONE]\n\n")
    assert running.counts_again()


def test_a_client_that_leaves_in_the_middle_of_a_stream_does_not_keep_it_busy(running: Running) -> None:
    body = {"messages": QUESTION, "stream": True}
    with requests.post(running.url + CHAT, json=body, stream=True, timeout=30) as answer:
        next(answer.iter_lines())
        assert running.liveness()["idle_time_minutes"] == 0
    assert running.counts_again()


@pytest.mark.parametrize("error", [RequestError("not that"), RuntimeError("out of memory")])
def test_an_answer_that_fails_does_not_keep_it_busy(error: Exception, running: Running) -> None:
    running.model.error = error
    running.model.go_on.set()
    assert running.ask().status_code >= 400
    assert running.counts_again()


@pytest.mark.parametrize("body", [b"{bad", b'{"messages": []}', b'{"messages": [], "stream": true}'])
def test_a_request_that_is_refused_does_not_keep_it_busy(body: bytes, running: Running) -> None:
    assert requests.post(running.url + CHAT, data=body, timeout=30).status_code >= 400
    assert running.counts_again()


def test_a_service_without_its_model_is_not_idle(running: Running) -> None:
    running.service._state = "model_load_failed"
    assert running.liveness()["idle_time_minutes"] == 0

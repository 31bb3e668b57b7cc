"""What every TAO microservice says alike (nvidia-tao-core 7.3.0, measured), held against ours and the tests' double.

So the double that the request path is tested with, and the service that users try everything with, cannot drift apart.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from doubles.tao_server import TaoServer
from smollm2_process import CHAT, LIVENESS, MODEL, QUESTION, READINESS, Service, need_model, start_in
from support import eventually, need_engine

Begin = Callable[[str], str]


@pytest.fixture(params=["double", "smollm2"])
def begin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Begin]:
    """Starts one whose model is `ready` or has `failed` to load, and gives its address."""
    services: list[Service] = []
    with ExitStack() as doubles:

        def start(state: str) -> str:
            if request.param == "double":
                double = TaoServer(job_id="job-1", fail=None if state == "ready" else state)
                return doubles.enter_context(double).url
            need_engine("smollm2", importlib.util.find_spec("flask") is not None, "flask is not installed")
            need_model()
            return start_in(tmp_path, services, MODEL if state == "ready" else "hf_model://org/other").url

        yield start
        for service in services:
            service.process.kill()
            service.process.wait()


def body(url: str, path: str) -> dict[str, Any] | None:
    try:
        answer = requests.get(url + path, timeout=30)
    except requests.ConnectionError:
        return None
    return {**answer.json(), "http_status": answer.status_code}


def settled(url: str) -> dict[str, Any]:
    """Readiness once the model is loaded or never will be."""
    waiting = ("server_initializing", "model_loading", "model_not_loaded")

    def look() -> dict[str, Any] | None:
        found = body(url, READINESS)
        return None if found is None or found.get("reason") in waiting else found

    return eventually(look, timeout=120)


def test_a_ready_service_says_so_and_whose_it_is(begin: Begin) -> None:
    readiness = settled(begin("ready"))
    assert (readiness["http_status"], readiness["status"], readiness["job_id"]) == (200, "ready", "job-1")


def test_liveness_has_the_same_fields(begin: Begin) -> None:
    url = begin("ready")
    settled(url)
    liveness = body(url, LIVENESS)
    assert liveness is not None
    assert liveness["http_status"] == 200
    assert liveness.keys() - {"http_status"} == {
        *("status", "model_loaded", "model_loading", "server_initializing", "job_id", "model_type"),
        *("last_request_time", "idle_time_minutes", "idle_timeout_minutes", "auto_deletion_enabled", "progress"),
    }
    assert liveness["progress"].keys() == {"stage", "message", "remaining_steps", "details", "timestamp"}


def test_a_model_that_failed_leaves_it_alive_and_is_told_in_three_places(begin: Begin) -> None:
    url = begin("failed")
    readiness = settled(url)
    assert (readiness["http_status"], readiness["status"], readiness["reason"]) == (
        503,
        "not_ready",
        "model_load_failed",
    )
    assert readiness["message"]
    liveness = body(url, LIVENESS)
    assert liveness is not None
    assert (liveness["http_status"], liveness["progress"]["stage"]) == (200, "error")
    chat = requests.post(url + CHAT, json={"messages": QUESTION}, timeout=30)
    assert (chat.status_code, chat.json()["error"]["type"]) == (503, "model_load_error")


@pytest.mark.parametrize("data", [b"", b"{bad"])
def test_what_is_not_json_is_an_internal_error(begin: Begin, data: bytes) -> None:
    url = begin("ready")
    settled(url)
    answer = requests.post(url + CHAT, data=data, headers={"Content-Type": "application/json"}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")


def test_an_answer_is_a_chat_completion(begin: Begin) -> None:
    url = begin("ready")
    settled(url)
    answer = requests.post(url + CHAT, json={"messages": QUESTION, "max_tokens": 5}, timeout=60).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"]
    assert isinstance(answer["choices"][0]["message"]["content"], str)
    assert answer["choices"][0]["finish_reason"]

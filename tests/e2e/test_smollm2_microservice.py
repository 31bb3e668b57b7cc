"""The smollm2 microservice with the real model, over HTTP: the TAO contract, streaming, load failures and its end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from smollm2_process import CHAT, LIVENESS, QUESTION, READINESS, STATUS, Service, Start, failed, need_model, start_in
from support import eventually, need_engine

from inference_service import references
from inference_service.microservices import weights

TOO_LONG = {"messages": [{"role": "user", "content": "x " * 6000}]}
LONG = [{"role": "user", "content": "Tell me a very long story about the sea."}]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    need_engine("smollm2", importlib.util.find_spec("flask") is not None, "flask is not installed")
    services: list[Service] = []
    yield lambda *arguments, **env: start_in(tmp_path, services, *arguments, **env)
    for service in services:
        service.process.kill()
        service.process.wait()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with the model loaded, for the tests that only ask."""
    need_model()
    services: list[Service] = []
    try:
        yield start_in(tmp_path_factory.mktemp("smollm2"), services).ready()
    finally:
        for service in services:
            service.process.kill()
            service.process.wait()


def test_an_answer_has_the_models_name_the_text_the_usage_and_nothing_of_the_librarys_own(
    smollm2: Service,
) -> None:
    answer = smollm2.ask(max_tokens=20)
    assert answer.status_code == 200
    document = answer.json()
    assert document.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert document["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "Paris" in document["choices"][0]["message"]["content"]
    assert document["choices"][0]["finish_reason"] == "stop"
    usage = document["usage"]
    assert usage["prompt_tokens"] > 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert isinstance(usage["prompt_tokens_details"]["cached_tokens"], int)
    assert smollm2.ask(max_tokens=1).json()["choices"][0]["finish_reason"] == "length"


def test_a_stream_is_server_sent_events_that_add_up_to_the_answer_then_usage_then_done(smollm2: Service) -> None:
    whole = smollm2.ask(max_tokens=20).json()
    answer = smollm2.ask(max_tokens=20, stream=True)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event) for event in events]
    text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces if piece["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {piece["model"] for piece in pieces} == {"HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert all("timings" not in piece and "system_fingerprint" not in piece for piece in pieces)


def test_a_client_that_leaves_in_the_middle_of_a_stream_stops_the_work(smollm2: Service) -> None:
    body = {"messages": LONG, "max_tokens": 4000, "stream": True, "seed": 1}
    with requests.post(smollm2.url + CHAT, json=body, stream=True, timeout=60) as answer:
        next(answer.iter_lines())
    eventually(lambda: "given up by the client" in smollm2.log)

    def idle() -> bool:
        process = psutil.Process(smollm2.process.pid)
        return process.cpu_percent(0.3) < 20

    eventually(idle, timeout=10)


def test_requests_at_once_each_get_their_own_answer(smollm2: Service) -> None:
    questions = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid"}

    def answer(country: str) -> str:
        messages = [{"role": "user", "content": f"What is the capital of {country}?"}]
        text: str = smollm2.ask(messages, max_tokens=20).json()["choices"][0]["message"]["content"]
        return text

    with ThreadPoolExecutor(len(questions)) as pool:
        answers = dict(zip(questions, pool.map(answer, questions), strict=True))
    assert all(questions[country] in text for country, text in answers.items()), answers


def test_the_system_prompt_reaches_the_model(smollm2: Service) -> None:
    system = {"role": "system", "content": "You are a helpful assistant. " * 20}
    plain, with_system = smollm2.ask(max_tokens=1).json(), smollm2.ask([system, *QUESTION], max_tokens=1).json()
    assert with_system["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 50


@pytest.mark.parametrize(
    ("body", "status", "type"),
    [
        (b"", 500, "internal_error"),
        (b"{bad", 500, "internal_error"),
        (b"{}", 400, "invalid_request"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "invalid_request"),
        (json.dumps(TOO_LONG).encode(), 400, "invalid_request"),
        (json.dumps(TOO_LONG | {"stream": True}).encode(), 400, "invalid_request"),
    ],
    ids=["empty", "not JSON", "no messages", "media", "longer than the context", "longer, streamed"],
)
def test_what_it_does_not_take_has_the_tao_error_shape(smollm2: Service, body: bytes, status: int, type: str) -> None:
    answer = requests.post(smollm2.url + CHAT, data=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == type
    assert answer.json()["error"]["message"]


def test_an_unknown_path_and_a_wrong_method_are_answered_in_json(smollm2: Service) -> None:
    assert smollm2.get("/nope").status_code == 404
    assert smollm2.get("/nope").json()["error"]["type"] == "not_found"
    assert smollm2.get(CHAT).status_code == 405
    assert smollm2.get(CHAT).json()["error"]["message"]


def test_health_says_what_the_tao_servers_say(smollm2: Service) -> None:
    readiness = smollm2.get(READINESS)
    assert (readiness.status_code, readiness.json()["status"], readiness.json()["job_id"]) == (200, "ready", "job-1")
    before = smollm2.get(LIVENESS).json()
    smollm2.ask(max_tokens=1)
    after = smollm2.get(LIVENESS).json()
    assert after.keys() == {
        *("status", "model_loaded", "model_loading", "server_initializing", "job_id", "model_type"),
        *("last_request_time", "idle_time_minutes", "idle_timeout_minutes", "auto_deletion_enabled", "progress"),
    }
    assert after["progress"].keys() == {"stage", "message", "remaining_steps", "details", "timestamp"}
    assert (after["model_loaded"], after["model_loading"], after["server_initializing"]) == (True, False, False)
    assert after["last_request_time"] > before["last_request_time"]
    assert smollm2.get(STATUS).json()["model_load_error"] is None


def test_the_port_that_llama_opens_for_itself_answers_nobody(smollm2: Service) -> None:
    ports = {
        connection.laddr.port
        for connection in psutil.Process(smollm2.process.pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    own = int(smollm2.url.rpartition(":")[2])
    assert own in ports
    for port in ports - {own}:
        answer = requests.post(f"http://127.0.0.1:{port}/completion", json={"prompt": "a", "n_predict": 1}, timeout=10)
        assert answer.status_code == 401


@pytest.mark.parametrize("model_path", ["hf_model://org/other", "/nowhere/model.gguf"])
def test_a_model_that_cannot_load_leaves_it_up_and_says_never(start: Start, model_path: str) -> None:
    service = start(model_path)
    document = eventually(lambda: failed(service))
    assert document["http_status"] == 503
    assert document["reason"] in references.load().wire.readiness.failure
    assert model_path in document["message"]
    assert document["job_id"] == "job-1"
    liveness = service.get(LIVENESS)
    assert liveness.status_code == 200
    assert liveness.json()["progress"]["stage"] == "error"
    assert service.get(STATUS).json()["model_load_error" if "load" in document["reason"] else "initialization_error"]
    answer = service.ask()
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] in ("model_load_error", "initialization_error")
    assert service.process.poll() is None


def test_a_damaged_file_is_a_load_failure_too(start: Start, tmp_path: Path) -> None:
    need_model()
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(1000))
    service = start(str(tmp_path / "damaged.gguf"))
    readiness = eventually(lambda: failed(service))
    assert readiness["reason"] == "model_load_failed"
    assert "damaged.gguf" in readiness["message"]


def test_while_it_loads_it_is_alive_says_wait_and_answers_202(start: Start, tmp_path: Path) -> None:
    need_model()
    # The model's file is a pipe that nobody has written to yet: loading waits for as long as the test likes.
    pipe = tmp_path / "slow.gguf"
    os.mkfifo(pipe)
    service = start(str(pipe))
    readiness = eventually(service.readiness)
    assert readiness["http_status"] == 503
    assert readiness["reason"] in references.load().wire.readiness.retry
    eventually(lambda: service.get(LIVENESS).json()["model_loading"])
    answer = service.ask()
    assert answer.status_code == 202
    assert answer.json()["error"]["type"] == "model_loading"
    progress = service.get(LIVENESS).json()["progress"]
    assert progress["stage"] == "locating_model"
    assert progress["remaining_steps"]
    pipe.write_bytes(b"none")
    eventually(lambda: failed(service))


def test_term_ends_it_at_once_with_status_0_even_in_the_middle_of_an_answer(start: Start) -> None:
    need_model()
    service = start().ready()
    asking = threading.Thread(target=lambda: _ask_and_ignore(service))
    asking.start()
    eventually(lambda: psutil.Process(service.process.pid).cpu_percent(0.1) > 50)
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=10) == 0
    assert time.monotonic() - began < 2
    asking.join()


def _ask_and_ignore(service: Service) -> None:
    try:
        service.ask(LONG, max_tokens=4000, seed=1)
    except requests.RequestException:
        return


def test_a_port_in_use_and_a_bad_job_end_it_with_the_reason(start: Start) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = str(stranger.getsockname()[1])
        taken = start("/nowhere/model.gguf", "--port", port)
        assert taken.process.wait(timeout=30) != 0
        assert port in taken.log
    bad = start("/nowhere/model.gguf", "--job", "{not json")
    assert bad.process.wait(timeout=30) == 2
    assert "not JSON" in bad.log


def test_its_weights_are_nobody_elses_to_write_although_the_inner_command_sets_umask_0(smollm2: Service) -> None:
    file = weights.cached(references.load().weights["smollm2"])
    assert file is not None
    for path in (file, file.parent, file.parent.parent):
        assert path.stat().st_mode & 0o022 == 0, path

"""How the gateway begins: readiness that spends nothing, service without keys, and starts that must fail."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from doubles.anthropic_api import AnthropicApi
from doubles.openai_service import OpenAIService
from gateway_process import CHAT, LIVENESS, MESSAGES, READINESS, serving_gateway
from gateway_stack import CLAUDE, SERVICE, THINKER, gateway_stack
from raw_http import Answer, ask, request
from smollm2_process import free_port
from support import SCRIPTS, eventually, run_script


@contextmanager
def as_a_service(folder: Path, upstream_url: str, key: str, model: str) -> Iterator[int]:
    """The gateway as start_service.py starts it; its port."""
    port = free_port()
    job = json.dumps({"job_id": "gateway-1", "specs": {"model_path": f"claude://{model}"}})
    own = {
        "PYTHONPATH": str(SCRIPTS),
        "ANTHROPIC_API_KEY": key,
        "ANTHROPIC_BASE_URL": upstream_url,
        "TAO_INF_MS_STATE_FILE": str(folder / "registry.json"),
        "TAO_INF_REQUEST_LOG": str(folder / "requests.db"),
        "TAO_INF_MS_PORT": str(port),
    }
    command = [sys.executable, "-m", "inference_service.gateway", "--job", job]
    process = subprocess.Popen(command, env={**os.environ, **own})
    try:
        yield port
    finally:
        process.terminate()
        assert process.wait(20) == 0


def told(port: int, path: str, want: Any) -> Answer:
    """The answer to that GET once `want` says that it is the one."""

    def asked() -> Answer | None:
        try:
            answer = ask(port, request("GET", path))
        except OSError:
            return None
        return answer if want(answer) else None

    return eventually(asked, timeout=20)


def test_it_is_ready_once_the_key_is_good_and_the_model_exists_and_nothing_was_spent(tmp_path: Path) -> None:
    with AnthropicApi() as claude, as_a_service(tmp_path, claude.url, claude.key, THINKER) as port:
        ready = told(port, READINESS, lambda answer: answer.status == 200)
        assert (ready.json["status"], ready.json["job_id"]) == ("ready", "gateway-1")
        alive = ask(port, request("GET", LIVENESS))
        assert (alive.status, alive.json["model_loaded"], alive.json["job_id"]) == (200, True, "gateway-1")
        assert {one.path for one in claude.requests} == {"/v1/models"}


@pytest.mark.parametrize(
    ("key", "model", "reason"),
    [("sk-ant-wrong", THINKER, "initialization_failed"), ("", "claude-nothing-9", "model_load_failed")],
)
def test_what_will_never_be_ready_says_so(tmp_path: Path, key: str, model: str, reason: str) -> None:
    with AnthropicApi() as claude, as_a_service(tmp_path, claude.url, key or claude.key, model) as port:
        answer = told(port, READINESS, lambda one: one.status == 503 and one.json["reason"] != "server_initializing")
        assert answer.json["reason"] == reason and answer.json["message"]
        assert ask(port, request("GET", LIVENESS)).json["model_loaded"] is False


def test_it_waits_for_a_vendor_that_cannot_be_reached_yet(tmp_path: Path) -> None:
    port_of_vendor = free_port()
    with as_a_service(tmp_path, f"http://127.0.0.1:{port_of_vendor}", "sk-ant-api03-of-the-double", THINKER) as port:
        answer = told(port, READINESS, lambda one: one.status == 503 and "cannot" in one.json["message"])
        assert answer.json["reason"] == "server_initializing"
        with AnthropicApi(port=port_of_vendor):
            assert told(port, READINESS, lambda one: one.status == 200).json["status"] == "ready"


def test_without_keys_this_machines_programs_are_served_and_web_pages_are_not(tmp_path: Path) -> None:
    with gateway_stack(tmp_path / "open", arguments=["--no-auth"], callers={}) as stack:
        client = openai.OpenAI(api_key="none", base_url=f"{stack.gateway.url}/v1", max_retries=0)
        answer = client.chat.completions.create(model=SERVICE, messages=[{"role": "user", "content": "Hi"}])
        assert answer.choices[0].message.content == "You asked: Hi"
        assert stack.gateway.rows(least=1)[0]["caller"] == "anonymous"
        before = len(stack.claude.requests) + len(stack.service.requests)
        body = {"model": CLAUDE, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
        # What a page can make a browser send without asking: a simple content type, or a name that was bound to us.
        for path in (CHAT, MESSAGES):
            for lines in ({"Content-Type": "text/plain"}, {"Host": "evil.example"}, {"Host": "evil.example:4000"}):
                assert ask(stack.gateway.port, request("POST", path, body=body, headers=lines)).status in (403, 415)
        assert len(stack.claude.requests) + len(stack.service.requests) == before
        for path in ("/metrics", "/dashboard/data"):
            assert ask(stack.gateway.port, request("GET", path)).status == 401


def test_without_keys_nothing_but_this_machine_is_served() -> None:
    refused = run_script("serve_gateway", "--no-auth", "--host", "0.0.0.0", "--port", "0", expect=2)
    assert refused.document["error"]["type"] == "no_auth_in_public"


def test_a_taken_port_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run_script("serve_gateway", "--port", str(port), expect=None)
    assert refused.status != 0 and refused.document["error"]["type"] == "port_taken"


def test_without_a_vendors_key_the_services_are_served(tmp_path: Path) -> None:
    with serving_gateway(tmp_path / "own", services={}) as gateway:
        assert told(gateway.port, READINESS, lambda one: one.status == 200).status == 200
        body = {"model": CLAUDE, "messages": [{"role": "user", "content": "Hi"}]}
        answer = ask(gateway.port, request("POST", CHAT, key=gateway.keys["app"], body=body))
        assert answer.status == 404 and answer.json["error"]["code"] == "unknown_model"


def test_a_vendor_that_cannot_be_reached_does_not_keep_the_services_from_being_served(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    with (
        OpenAIService("service-1") as service,
        serving_gateway(
            tmp_path, upstream_url=nowhere, upstream_key="sk-ant-none", services={"service-1": service.url}
        ) as gateway,
    ):
        eventually(lambda: requests.get(gateway.url + READINESS, timeout=10).status_code == 200, 10)
        assert "cannot be asked for its models" in gateway.log


def test_a_database_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    refused = run_script(
        "serve_gateway", *("--port", "0", "--database", "postgresql://me:hunter2hunter2@127.0.0.1/log"), expect=2
    )
    assert refused.document["error"]["type"] == "password_on_command_line"
    assert "hunter2hunter2" not in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    "wrong", [("--port", "65536"), ("--workers", "0"), ("--drain", "nan"), ("--host", "no.invalid")]
)
def test_what_nothing_can_be_served_with_is_bad_input(wrong: tuple[str, str]) -> None:
    assert run_script("serve_gateway", *wrong, expect=2).document["error"]["fix"]

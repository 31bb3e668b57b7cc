"""Claude as a service: the gateway, started, asked, watched and stopped by the scripts, with a double of Anthropic."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from doubles.anthropic_api import AnthropicApi
from support import eventually, need_engine, run_script

MODEL = "claude-haiku-4-5-20251001"
CALLER_KEY = "the-key-of-whoever-started-it"
START = ("--network-arch", "claude", "--model-path", f"claude://{MODEL}", "--env", "ANTHROPIC_BASE_URL")
ASK = ("--prompt", "Hello there", "--accept-defaults")
PLATFORMS = [
    pytest.param("local-process"),
    pytest.param("local-docker", marks=[pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("docker")]),
]


def listening_host(platform: str) -> str:
    """An address of this machine that a service of that platform reaches, and nobody outside does."""
    if platform == "local-process":
        need_engine("gateway", importlib.util.find_spec("uvicorn") is not None, "the extra gateway is not installed")
        return "127.0.0.1"
    image = os.environ.get("IMAGE_CLAUDE", "tao-inference-service/gateway:0.1.0")
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True)
    need_engine("gateway-image", found.returncode == 0, f"{image} is not on a Docker engine: {found.stderr.strip()}")
    network = subprocess.run(["docker", "network", "inspect", "bridge"], capture_output=True, text=True, check=True)
    return str(json.loads(network.stdout)[0]["IPAM"]["Config"][0]["Gateway"])


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def api(platform: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[AnthropicApi]:
    """A double that the service is to use; whatever is left of our services at the end is stopped."""
    with AnthropicApi(listening_host(platform)) as double:
        monkeypatch.setenv("ANTHROPIC_API_KEY", double.key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", double.url)
        monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", CALLER_KEY)
        yield double
        run_script("registry", "reconcile", expect=None)
        run_script("stop_service", "--all", expect=None)


def test_claude_is_started_asked_watched_and_stopped_like_any_service(
    platform: str, api: AnthropicApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = run_script("start_service", "--platform", platform, *START, timeout=120).document
    assert started["ready"]
    sent = run_script("send_request", *ASK).document
    assert "Hello there" in sent["content"]
    assert sent["usage"]["completion_tokens"] > 0
    streamed = run_script("send_request", *ASK, "--stream", "--caller", "alice").stdout
    assert "Hello there" in "".join(json.loads(line).get("delta", "") for line in streamed.splitlines())
    if platform == "local-process":
        # It has the user's own log, where each request has one row, with its cost, and says for whom it was.
        by_caller = run_script("usage_report").document["groups"]
        assert [(group["caller"], group["requests"], group["unpriced"]) for group in by_caller] == [("owner", 2, 0)]
        by_tag = run_script("usage_report", "--by", "tag").document["groups"]
        assert "caller=alice" in {group["tag"] for group in by_tag}
    (listed,) = run_script("registry", "list").document["services"]
    assert (listed["network_arch"], listed["job_id"]) == ("claude", started["job_id"])
    assert run_script("service_logs", "--job-id", started["job_id"]).document["lines"]

    assert requests.post(started["host_url"] + "/v1/chat/completions", json={}, timeout=10).status_code == 401
    monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", "somebody-elses-key-0123456789")
    refused = run_script("send_request", *ASK, expect=1).document["error"]
    assert refused["type"] == "unauthorized"
    assert "TAO_GATEWAY_CALLER_KEY" in refused["message"]

    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        for secret in (CALLER_KEY, api.key):
            assert secret.encode() not in file.read_bytes(), file
    assert run_script("stop_service", "--all").document["stopped"] == [started["job_id"]]


def test_no_secret_of_it_is_in_a_command_line(platform: str, api: AnthropicApi) -> None:
    run_script("start_service", "--platform", platform, *START, timeout=120)

    def seen() -> list[str]:
        return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]

    lines = eventually(lambda: [line for line in seen() if "inference_service.gateway" in line])
    assert not [line for line in seen() if CALLER_KEY in line or api.key in line]
    assert all(MODEL in line for line in lines)
    run_script("stop_service", "--all")


@pytest.mark.parametrize("missing", ["ANTHROPIC_API_KEY", "TAO_GATEWAY_CALLER_KEY"])
def test_without_a_key_nothing_is_started_and_the_variable_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {"ANTHROPIC_API_KEY", "TAO_GATEWAY_CALLER_KEY"} - {missing}:
        monkeypatch.setenv(name, "k" * 32)
    error = run_script("start_service", "--platform", "local-process", *START[:4], expect=2).document["error"]
    assert missing in json.dumps(error)
    assert run_script("registry", "list").document["services"] == []


@pytest.mark.parametrize("platform", ["local-process", "local-docker", "kubernetes", "slurm", "brev", "lepton"])
def test_a_dry_run_shows_on_every_platform_what_would_run_with_secrets_as_names(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-planted-0123456789")
    monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", CALLER_KEY)
    chosen: tuple[str, ...] = ()
    if platform == "slurm":
        chosen = ("--partition", "cluster-default", "--account", "cluster-default")
        monkeypatch.setenv("IMAGE_CLAUDE", "/home/me/gateway.sif")
    result = run_script("start_service", "--platform", platform, *START[:4], *chosen, "--dry-run")
    assert "sk-ant-planted" not in result.stdout + result.stderr
    assert CALLER_KEY not in result.stdout + result.stderr
    assert "ANTHROPIC_API_KEY" in result.stdout
    assert "TAO_GATEWAY_CALLER_KEY" in result.stdout
    assert "inference_service.gateway" in result.stdout

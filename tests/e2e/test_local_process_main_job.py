"""The whole life cycle as processes of this machine, by the scripts alone, with the real model."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from support import SCRIPTS, eventually, need_engine, run_script

pytestmark = pytest.mark.slow

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
START = ("--platform", "local-process", "--network-arch", "smollm2", "--model-path", MODEL)
QUESTION = ("--prompt", "What is the capital of France?", "--set", "temperature=0", "--accept-defaults")


@pytest.fixture(autouse=True)
def nothing_left(own_state: None) -> Iterator[None]:
    """The model can run here; whatever a test leaves of its own services is ended, and leaving any is a failure."""
    installed = importlib.util.find_spec("xllamacpp") is not None and importlib.util.find_spec("flask") is not None
    need_engine("smollm2", installed, "xllamacpp or flask is not installed: pip install '.[local]'")
    yield
    run_script("registry", "reconcile", expect=None)
    run_script("stop_service", "--all", expect=None)
    assert our_processes() == {}


def our_processes() -> dict[int, str]:
    """job_id by pid of the service processes in this test's registry's name."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            ours = environ.get("TAO_REGISTRY", "").endswith(os.environ["TAO_INF_MS_STATE_FILE"])
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = environ["TAO_JOB_ID"]
    return found


def start(*options: str, **env: str) -> dict[str, Any]:
    document: dict[str, Any] = run_script("start_service", *START, *options, env=env, timeout=300).document
    return document


def test_two_services_started_at_once_answer_each_for_itself_and_end_together() -> None:
    with ThreadPoolExecutor(2) as pool:
        services = list(pool.map(lambda _: start(), range(2)))
    assert len({service["host_url"] for service in services}) == 2
    for service in services:
        assert requests.get(service["host_url"] + "/api/v1/status", timeout=10).json()["job_id"] == service["job_id"]
        answer = run_script("send_request", "--job-id", service["job_id"], *QUESTION).document
        assert "Paris" in answer["content"]
        assert answer["job_id"] == service["job_id"]
    run_script("send_request", *QUESTION, expect=3)
    stopped = run_script("stop_service", "--all").document
    assert {item if isinstance(item, str) else item["job_id"] for item in stopped["stopped"]} == {
        service["job_id"] for service in services
    }
    assert our_processes() == {}
    assert run_script("registry", "list").document["services"] == []


def test_a_streamed_answer_says_the_same_as_a_whole_one() -> None:
    start()
    whole = run_script("send_request", *QUESTION).document["content"]
    lines = [json.loads(line) for line in run_script("send_request", *QUESTION, "--stream").stdout.splitlines()]
    assert whole in json.dumps(lines)


def test_a_service_killed_behind_our_back_is_marked_gone_and_one_that_lost_its_registry_is_adopted() -> None:
    killed, kept = start(), start()
    for pid, job_id in our_processes().items():
        if job_id == killed["job_id"]:
            os.kill(pid, signal.SIGKILL)
    assert run_script("registry", "reconcile", "--remove-gone").document["removed"] == [killed["job_id"]]
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [kept["job_id"]]
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]


def test_a_model_that_cannot_load_is_told_with_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(1000))
    failed = run_script("start_service", *START[:-1], str(damaged), expect=1, timeout=120).document
    assert "damaged.gguf" in json.dumps(failed["error"])
    assert failed["error"]["fix"]
    missing = run_script("start_service", *START[:-1], "/nowhere/model.gguf", expect=2).document
    assert "/nowhere/model.gguf" in missing["error"]["message"]
    assert our_processes() == {}
    assert run_script("registry", "list").document["services"] == []


@pytest.mark.parametrize("point", ["at once", "reserved", "runs", "registered"])
def test_a_start_killed_at_any_point_loses_and_orphans_nothing(point: str) -> None:
    starter = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "start_service.py"), *START],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    state = Path(os.environ["TAO_INF_MS_STATE_FILE"])

    def reached() -> bool:
        text = state.read_text() if state.exists() else ""
        return {
            "at once": True,
            "reserved": '"starting"' in text,
            "runs": bool(our_processes()),
            "registered": '"running"' in text,
        }[point]

    eventually(lambda: reached() or starter.poll() is not None, every=0.002)
    starter.kill()
    starter.wait()

    def settled() -> bool:
        run_script("registry", "reconcile", "--remove-gone")
        registered = {service["job_id"] for service in run_script("registry", "list").document["services"]}
        return registered == set(our_processes().values())

    eventually(settled, timeout=20)
    run_script("stop_service", "--all")
    assert our_processes() == {}
    assert run_script("registry", "list").document["services"] == []


def test_a_secret_is_in_no_command_line_no_file_of_ours_and_no_output() -> None:
    secret = "hf_planted_for_this_test"
    started = run_script("start_service", *START, "--env", "HF_TOKEN", env={"HF_TOKEN": secret}, timeout=300)
    assert any(psutil.Process(pid).environ().get("HF_TOKEN") == secret for pid in our_processes())
    log = next(Path(os.environ["XDG_STATE_HOME"]).rglob("log"))
    with log.open("a") as stream:
        stream.write(f"a library that prints {secret}\n")
    logs = run_script("service_logs", "--job-id", started.document["job_id"], "--tail", "5", env={"HF_TOKEN": secret})
    assert "a library that prints [redacted]" in logs.stdout
    for result in (started, logs, run_script("registry", "list")):
        assert secret not in result.stdout + result.stderr
    assert secret not in Path(os.environ["TAO_INF_MS_STATE_FILE"]).read_text()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert secret.encode() not in file.read_bytes()

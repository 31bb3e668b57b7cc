"""The whole life cycle on a real Docker engine with the SmolLM2 image and GPU requests, by the scripts alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from support import SCRIPTS, eventually, need_engine, run_script

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("docker")]

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
START = ("--platform", "local-docker", "--network-arch", "smollm2", "--model-path", MODEL)
QUESTION = ("--prompt", "What is the capital of France?", "--set", "temperature=0", "--accept-defaults")


@pytest.fixture(autouse=True)
def smollm2_image(own_state: None) -> Iterator[None]:
    """The engine has the image; whatever a test leaves of its own services is removed, and leaving any is a failure."""
    docker = subprocess.run(
        ["docker", "image", "inspect", os.environ.get("IMAGE_SMOLLM2", "tao-inference-service/smollm2:0.1.0")],
        capture_output=True,
        text=True,
    )
    need_engine(
        "docker", docker.returncode == 0, f"the smollm2 image is not on a Docker engine: {docker.stderr.strip()}"
    )
    yield
    run_script("registry", "reconcile", expect=None)
    run_script("stop_service", "--all", expect=None)
    assert our_containers() == []


def our_containers(state: str = "") -> list[dict[str, Any]]:
    """`docker inspect` of this test's containers: those of services in its registry's name."""
    user_registry = os.environ["TAO_INF_MS_STATE_FILE"]
    command = ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", "label=tao-job-id"]
    ids = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    found = []
    for container in ids:
        inspected = subprocess.run(["docker", "inspect", container], capture_output=True, text=True)
        if inspected.returncode == 0:
            found += json.loads(inspected.stdout)
    return [
        container
        for container in found
        if container["Config"]["Labels"].get("tao-registry", "").endswith(user_registry)
        and container["State"]["Status"].startswith(state)
    ]


def ask(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = run_script("send_request", *arguments, *QUESTION).document
    return document


def test_three_services_started_at_once_get_three_ports_and_each_answers_its_own_requests() -> None:
    with ThreadPoolExecutor(3) as pool:
        starts = [pool.submit(run_script, "start_service", *START, "--num-gpus", "1", timeout=300) for _ in range(3)]
        services = [start.result().document for start in starts]
    assert len({service["host_url"] for service in services}) == 3
    assert len({service["job_id"] for service in services}) == 3

    def last_requests() -> dict[str, Any]:
        return {
            service["job_id"]: requests.get(service["host_url"] + "/api/v1/health/liveness", timeout=10).json()[
                "last_request_time"
            ]
            for service in services
        }

    for service in services:
        before = last_requests()
        answer = ask("--job-id", service["job_id"])
        assert "Paris" in answer["content"]
        assert answer["job_id"] == service["job_id"]
        after = last_requests()
        assert {job_id for job_id in after if after[job_id] != before[job_id]} == {service["job_id"]}

    ambiguous = run_script("send_request", "--network-arch", "smollm2", *QUESTION, expect=3).document
    assert {option["job_id"] for option in ambiguous["needs"][0]["options"]} == {
        service["job_id"] for service in services
    }
    run_script("send_request", *QUESTION, expect=3)

    for container in our_containers():
        assert container["HostConfig"]["DeviceRequests"][0]["Count"] == 1

    stopped = run_script("stop_service", "--all").document
    assert len(stopped["stopped"]) == 3
    assert our_containers() == []
    assert run_script("registry", "list").document["services"] == []


def test_a_single_service_is_found_by_its_network_arch_or_without_any_name_and_its_requests_are_counted() -> None:
    started = run_script("start_service", *START, timeout=300).document
    assert started["ready"] is True
    assert "Paris" in ask("--network-arch", "smollm2", "--caller", "alice")["content"]
    assert "Paris" in ask("--caller", "bob")["content"]
    assert run_script("send_request", "--network-arch", "cosmos-rl", *QUESTION, expect=2).document["error"]["fix"]

    report = run_script("usage_report", "--by", "caller").document
    assert {group["caller"]: group["requests"] for group in report["groups"]} == {"alice": 1, "bob": 1}
    assert all(group["output_tokens"] > 0 for group in report["groups"])
    logs = run_script("service_logs", "--job-id", started["job_id"], "--tail", "20").document
    assert logs["lines"]


def test_a_container_killed_behind_our_back_is_marked_gone_and_removed_when_asked() -> None:
    started = run_script("start_service", *START, timeout=300).document
    subprocess.run(["docker", "kill", started["job_id"]], check=True, capture_output=True)
    assert run_script("registry", "reconcile").document["gone"] == [started["job_id"]]
    run_script("send_request", "--job-id", started["job_id"], *QUESTION, expect=2)
    assert run_script("registry", "reconcile", "--remove-gone").document["removed"] == [started["job_id"]]
    assert run_script("registry", "list").document["services"] == []
    assert our_containers() == []


def test_a_container_that_lost_its_registry_is_adopted_and_answers() -> None:
    started = run_script("start_service", *START, timeout=300).document
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [started["job_id"]]
    entry = run_script("registry", "show", started["job_id"]).document["services"][0]
    assert entry["host_url"] == started["host_url"]
    assert entry["model_path"] == MODEL
    assert "Paris" in ask()["content"]


def test_a_model_that_cannot_load_is_reported_in_seconds_and_leaves_nothing() -> None:
    began = time.monotonic()
    failed = run_script("start_service", *START[:-1], "/nowhere/model.gguf", expect=1, timeout=120).document
    assert time.monotonic() - began < 30
    assert "/nowhere/model.gguf" in json.dumps(failed["error"])
    assert failed["error"]["fix"]
    assert our_containers() == []
    assert run_script("registry", "list").document["services"] == []


KILL_POINTS = ("at once", "reserved", "container made", "container runs", "registered")


@pytest.mark.parametrize("point", KILL_POINTS)
def test_kill_9_of_start_service_loses_and_orphans_nothing(point: str) -> None:
    registry_file = Path(os.environ["TAO_INF_MS_STATE_FILE"])

    def services() -> list[dict[str, Any]]:
        if not registry_file.exists():
            return []
        entries = json.loads(registry_file.read_text())
        return [{"job_id": name, **entry} for name, entry in entries.items() if isinstance(entry, dict)]

    def reached() -> bool:
        if point == "at once":
            return True
        if point == "reserved":
            return bool(services())
        if point == "registered":
            return any(entry["status"] == "running" for entry in services())
        return bool(our_containers("running" if point == "container runs" else ""))

    command = [sys.executable, str(SCRIPTS / "start_service.py"), *START]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually(reached, timeout=60, every=0.002)
    starter.send_signal(signal.SIGKILL)
    starter.communicate()

    run_script("registry", "reconcile")
    registered = {entry["job_id"]: entry["status"] for entry in services()}
    running = {container["Name"].lstrip("/") for container in our_containers("running")}
    assert {job_id for job_id, status in registered.items() if status == "running"} == running
    assert {container["Name"].lstrip("/") for container in our_containers()} <= set(registered)
    if point in ("container runs", "registered"):
        assert len(running) == 1
        run_script("wait_ready", "--timeout", "60")
        assert "Paris" in ask()["content"]

    # The next start is not in the way of what the killed one left, and afterwards all of it can be stopped.
    run_script("start_service", *START, timeout=300)
    run_script("stop_service", "--all")
    run_script("registry", "reconcile", "--remove-gone")
    assert services() == []
    assert our_containers() == []


def test_a_deadline_is_on_the_container_survives_a_lost_registry_and_is_kept_by_expired() -> None:
    long = run_script("start_service", *START, "--max-hours", "2", timeout=300).document
    short = run_script("start_service", *START, "--max-hours", "0.0001", timeout=300).document
    labels = {container["Name"].lstrip("/"): container["Config"]["Labels"] for container in our_containers()}
    assert labels[long["job_id"]]["tao-stop-after"] == long["stop_after"]
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    run_script("registry", "reconcile")
    listed = {entry["job_id"]: entry for entry in run_script("registry", "list").document["services"]}
    assert {job_id: entry["stop_after"] for job_id, entry in listed.items()} == {
        service["job_id"]: service["stop_after"] for service in (long, short)
    }
    assert {entry["state"] for entry in listed.values()} == {"RUNNING"}
    assert None not in {entry["idle_minutes"] for entry in listed.values()}
    assert run_script("stop_service", "--expired", "--idle", "1h").document["stopped"] == [short["job_id"]]
    assert [container["Name"].lstrip("/") for container in our_containers()] == [long["job_id"]]


def test_planted_secrets_are_in_no_command_line_label_registry_log_or_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "hf_plantedSecretValue0123456789"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("WANDB_API_KEY", secret[::-1])
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *START, "--env", "HF_TOKEN", "--env", "WANDB_API_KEY"]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command_lines = b""
    while starter.poll() is None:
        command_lines += every_command_line()
    stdout, stderr = starter.communicate()
    assert starter.returncode == 0, stderr
    command_lines += every_command_line()

    answer = run_script("send_request", *QUESTION)
    container = our_containers()[0]
    assert f"HF_TOKEN={secret}" in container["Config"]["Env"], "the container did not get the secret at all"
    visible = {
        "command lines": command_lines.decode(errors="replace"),
        "container command": json.dumps([container["Path"], container["Args"], container["Config"]["Cmd"]]),
        "labels": json.dumps(container["Config"]["Labels"]),
        "start_service": stdout + stderr,
        "send_request": answer.stdout + answer.stderr,
        "logs": run_script("service_logs", "--job-id", container["Name"].lstrip("/")).stdout,
    }
    visible |= {str(file): file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()}
    for where, text in visible.items():
        assert secret not in text, where
        assert secret[::-1] not in text, where


def every_command_line() -> bytes:
    lines = b""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines += file.read_bytes()
        except OSError:
            continue
    return lines

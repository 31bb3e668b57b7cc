"""The whole life cycle on a real cluster with the SmolLM2 image, by the scripts alone."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kubernetes_forward as forward
import psutil
import pytest
from kubernetes_engine import (
    IMAGE,
    LOCAL_STATE,
    MODEL,
    Namespace,
    bind,
    is_local,
    need_gpus,
    needed_rights,
)
from support import SCRIPTS, SKILL, eventually, need_engine, run_script

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

START = ("--platform", "kubernetes", "--network-arch", "smollm2", "--model-path", MODEL)
FORWARDED = (*START, "--service-type", "ClusterIP")
QUESTION = ("--prompt", "What is the capital of France?", "--set", "temperature=0", "--accept-defaults")


@pytest.fixture(autouse=True)
def nothing_is_left(namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaving anything of ours in the namespace, or a port-forward, is a failure."""
    monkeypatch.setenv("IMAGE_SMOLLM2", IMAGE)
    yield
    run_script("registry", "reconcile", expect=None)
    run_script("stop_service", "--all", expect=None)
    assert namespace.left() == {}
    assert our_forwards(tmp_path) == []


def our_forwards(state: Path) -> list[int]:
    """The port-forwards that were started with this test's state directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(forward.PROGRAM) in (process.info["cmdline"] or ()):
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            if f"XDG_STATE_HOME={state}".encode() in environment:
                found.append(process.pid)
    return found


def ask(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = run_script("send_request", *arguments, *QUESTION).document
    return document


def services() -> dict[str, dict[str, Any]]:
    file = Path(os.environ["TAO_INF_MS_STATE_FILE"])
    document = json.loads(file.read_text()) if file.exists() else {}
    return {name: entry for name, entry in document.items() if isinstance(entry, dict)}


@pytest.mark.xdist_group("kubernetes-gpus")
def test_start_ask_look_and_stop_with_a_gpu_through_a_forwarded_port(namespace: Namespace) -> None:
    gpus = str(min(1, need_gpus(namespace)))
    started = run_script("start_service", *FORWARDED, "--num-gpus", gpus, timeout=300).document
    assert started["ready"]
    assert started["platform_job_id"] == f"tao-{started['job_id']}"
    assert "Paris" in ask()["content"]
    listed = run_script("registry", "list").document
    assert listed["latest"] == started["job_id"]
    lines = run_script("service_logs", "--job-id", started["job_id"]).document["lines"]
    assert any("chat completion" in line for line in lines)
    assert run_script("stop_service", "--job-id", started["job_id"]).document["stopped"] == [started["job_id"]]
    assert services() == {}


def test_two_services_started_at_once_each_answer_their_own_requests(namespace: Namespace) -> None:
    with ThreadPoolExecutor(2) as pool:
        starts = [
            pool.submit(run_script, "start_service", *START, "--service-type", kind, timeout=300)
            for kind in ("ClusterIP", "NodePort")
        ]
        started = [start.result().document for start in starts]
    assert len({service["host_url"] for service in started}) == 2
    for service in started:
        answer = ask("--job-id", service["job_id"])
        assert answer["url"].startswith(service["host_url"])
        assert "Paris" in answer["content"]


def test_a_dead_port_forward_is_opened_again_before_a_request_and_said(namespace: Namespace) -> None:
    run_script("start_service", *FORWARDED, timeout=300)
    (entry,) = services().values()
    psutil.Process(entry["port_forward"]["pid"]).kill()
    again = run_script("send_request", *QUESTION)
    assert "Paris" in again.document["content"]
    assert again.stderr.count("was opened again") == 1
    assert "was opened again" not in run_script("send_request", *QUESTION).stderr
    (entry,) = services().values()
    psutil.Process(entry["port_forward"]["pid"]).kill()
    assert "was opened again" in run_script("wait_ready").stderr


def test_without_a_load_balancer_the_user_is_asked_and_nothing_is_left(namespace: Namespace) -> None:
    asked = run_script("start_service", *START, "--address-timeout", "1", expect=3, timeout=120).document
    assert asked["needs"][0]["answer_with"] == "--service-type"
    assert namespace.left() == {}
    assert services() == {}


def test_a_service_whose_registry_was_lost_is_adopted_and_answers(namespace: Namespace) -> None:
    started = run_script("start_service", *FORWARDED, timeout=300).document
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [started["job_id"]]
    (entry,) = services().values()
    assert entry["host_url"] == started["host_url"]
    assert entry["model_path"] == MODEL
    assert "Paris" in ask()["content"]


def test_a_job_that_was_deleted_behind_our_back_is_found_gone(namespace: Namespace) -> None:
    started = run_script("start_service", *FORWARDED, timeout=300).document
    delete = namespace.cluster.batch.delete_namespaced_job
    body = {"propagationPolicy": "Foreground"}
    namespace.cluster.ask(delete, started["platform_job_id"], namespace.name, body=body)
    eventually(lambda: namespace.left() == {}, timeout=60)
    assert run_script("registry", "reconcile").document["gone"] == [started["job_id"]]
    assert run_script("registry", "reconcile", "--remove-gone").document["removed"] == [started["job_id"]]


def test_a_model_that_cannot_load_is_reported_with_its_log_and_leaves_nothing(namespace: Namespace) -> None:
    missing = (*FORWARDED[:-3], "/nowhere/model.gguf", *FORWARDED[-2:])
    failed = run_script("start_service", *missing, expect=1, timeout=120).document
    assert "/nowhere/model.gguf" in json.dumps(failed["error"])
    assert namespace.left() == {}
    assert services() == {}


KILL_POINTS = ("at once", "reserved", "job made", "released", "registered")


@pytest.mark.parametrize("point", KILL_POINTS)
def test_kill_9_of_start_service_loses_and_orphans_nothing(namespace: Namespace, tmp_path: Path, point: str) -> None:
    reached: dict[str, Callable[[], bool]] = {
        "at once": lambda: True,
        "reserved": lambda: bool(services()),
        "job made": lambda: bool(namespace.get("jobs")),
        "released": lambda: any(not job["spec"].get("suspend") for job in namespace.get("jobs")),
        "registered": lambda: any(entry["status"] == "running" for entry in services().values()),
    }
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *FORWARDED]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually(reached[point], timeout=60, every=0.002)
    starter.send_signal(signal.SIGKILL)
    starter.communicate()

    run_script("registry", "reconcile")
    registered = {job_id: entry["status"] for job_id, entry in services().items()}
    assert set(registered.values()) <= {"running"}
    assert {job["metadata"]["labels"]["tao-job-id"] for job in namespace.get("jobs")} == set(registered)
    if point in ("released", "registered"):
        assert len(registered) == 1
        run_script("wait_ready", "--timeout", "60")
        assert "Paris" in ask()["content"]
    run_script("stop_service", "--all")
    assert namespace.left() == {}
    eventually(lambda: our_forwards(tmp_path) == [], timeout=30)


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_nothing(namespace: Namespace, stop_signal: signal.Signals) -> None:
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *START]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    namespace.one("pods")
    starter.send_signal(stop_signal)
    stdout, stderr = starter.communicate(timeout=60)
    assert starter.returncode in (130, 143), stderr
    assert json.loads(stdout)["error"]["type"] == "interrupted"
    assert namespace.left() == {}
    assert services() == {}


def test_a_planted_secret_is_in_the_secret_and_nowhere_else(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_plantedSecretValue0123456789"
    monkeypatch.setenv("HF_TOKEN", secret)
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *FORWARDED, "--env", "HF_TOKEN"]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command_lines = b""
    while starter.poll() is None:
        command_lines += every_command_line()
    stdout, stderr = starter.communicate()
    assert starter.returncode == 0, stderr
    command_lines += every_command_line()
    made = namespace.one("secrets")
    assert base64.b64decode(made["data"]["HF_TOKEN"]).decode() == secret
    container = namespace.one("pods")["spec"]["containers"][0]
    by_reference = {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": made["metadata"]["name"], "key": "HF_TOKEN"}},
    }
    assert by_reference in container["env"]
    (entry,) = services().values()
    visible = {
        "command lines": command_lines.decode(errors="replace"),
        "environment of the port-forward": Path(f"/proc/{entry['port_forward']['pid']}/environ").read_text(),
        "manifests": json.dumps([namespace.get(kind) for kind in ("jobs", "pods", "services")]),
        "start_service": stdout + stderr,
        "dry run": run_script("start_service", *FORWARDED, "--env", "HF_TOKEN", "--dry-run").stdout,
    }
    visible |= {str(file): file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()}
    for where, text in visible.items():
        assert secret not in text, where


def every_command_line() -> bytes:
    lines = b""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines += file.read_bytes()
        except OSError:
            continue
    return lines


def test_the_scripts_work_inside_a_pod_with_exactly_the_rights_that_the_skill_lists(namespace: Namespace) -> None:
    local = is_local() and sys.version_info[:2] == (3, 11)
    need_engine("kubernetes-local", local, f"the pod borrows this machine's Python 3.11 packages: {LOCAL_STATE}")
    cluster, core = namespace.cluster, namespace.cluster.core
    cluster.ask(core.create_namespaced_service_account, namespace.name, {"metadata": {"name": "starter"}})
    bind(namespace, "starter", needed_rights())
    run = "python3 /skill/scripts"
    # With a dockerd beside it, pods of a one-node cluster do not reach each other by cluster addresses: that one is
    # only started; the other is asked through the node's port.
    script = (
        f"{run}/start_service.py {' '.join(FORWARDED)} --no-wait && {run}/stop_service.py --all &&"
        f" {run}/start_service.py {' '.join(START)} --service-type NodePort --node-address $NODE &&"
        f" {run}/send_request.py --accept-defaults --set temperature=0 --prompt 'What is the capital of France?' &&"
        f" {run}/stop_service.py --all"
    )
    node = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
    mounts = {"skill": SKILL, "packages": Path(sysconfig.get_path("purelib"))}
    container = {
        "name": "starter",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["bash", "-c", script],
        "env": [{"name": "PYTHONPATH", "value": "/packages"}, {"name": "HOME", "value": "/tmp"}, node],
        "volumeMounts": [{"name": name, "mountPath": f"/{name}", "readOnly": True} for name in mounts],
    }
    spec = {
        "serviceAccountName": "starter",
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": name, "hostPath": {"path": str(path)}} for name, path in mounts.items()],
    }
    cluster.ask(core.create_namespaced_pod, namespace.name, {"metadata": {"name": "starter"}, "spec": spec})

    def phase() -> str | None:
        found: str = cluster.ask(core.read_namespaced_pod, "starter", namespace.name)["status"]["phase"]
        return found if found in ("Succeeded", "Failed") else None

    ended = eventually(phase, timeout=120)
    log = core.read_namespaced_pod_log("starter", namespace.name)
    assert ended == "Succeeded", log
    assert re.search(r'"host_url": "http://10\.\d+\.\d+\.\d+:8080"', log)
    assert "Paris" in log
    assert '"stopped": [' in log
    assert namespace.left() == {}

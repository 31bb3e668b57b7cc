"""start_service.py, wait_ready.py, stop_service.py and service_logs.py as a user runs them, with real processes.

The service is the double of a TAO server, run by local-process as the inner command; so loading, failing and crashing
can be had at will.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from doubles.inner_command import InnerCommand, processes
from doubles.tao_server import TaoServer
from support import SCRIPTS, eventually, one_document, run_script

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
START = ("--platform", "local-process", "--network-arch", "smollm2", "--model-path", MODEL)


@pytest.fixture(autouse=True)
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_state: None) -> Iterator[InnerCommand]:
    """What a started service does. Nothing may be left of any after the test has stopped what it knows of."""
    yield InnerCommand(tmp_path, monkeypatch)
    run_script("stop_service", "--all", expect=None)
    left = processes()
    for process in left:
        process.kill()
    assert left == []


def start(*options: str, expect: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = run_script("start_service", *START, *options, expect=expect).document
    return document


def services() -> dict[str, dict[str, Any]]:
    return {entry["job_id"]: entry for entry in run_script("registry", "list", "--offline").document["services"]}


def spawn(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def registered(status: str) -> bool:
    file = Path(os.environ["TAO_INF_MS_STATE_FILE"])
    state = json.loads(file.read_text()) if file.exists() else {}
    return any(isinstance(entry, dict) and entry["status"] == status for entry in state.values())


def test_a_start_waits_until_the_service_answers_and_says_where(service: InnerCommand) -> None:
    service.behave("--initialize-seconds", "0.3", "--load-seconds", "0.7")
    done = run_script("start_service", *START)
    document = done.document
    assert document["ready"] is True
    assert 1 <= document["seconds"] < 4
    assert document["url"] == document["host_url"] + "/v1/chat/completions"
    answer = requests.post(document["url"], json={"messages": [{"role": "user", "content": "hello"}]}, timeout=10)
    assert answer.json()["choices"][0]["message"]["content"] == "You asked: hello"
    for line in ("Inference service started.", f"  Job ID : {document['job_id']}", "  Arch   : smollm2",
                 f"  URL    : {document['url']}"):  # fmt: skip
        assert line in done.stderr.splitlines()
    assert "Loading model into memory (remaining: Complete model loading, Ready for inference)" in done.stderr
    assert services()[document["job_id"]]["status"] == "running"


def test_progress_as_events_is_nothing_but_json_lines(service: InnerCommand) -> None:
    service.behave("--load-seconds", "0.7")
    done = run_script("start_service", *START, "--events")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} == {"progress"}
    assert "loading_model" in {event["stage"] for event in events}


@pytest.mark.parametrize("shape", ["reason", "error"])
def test_a_model_that_cannot_load_is_an_error_in_seconds_and_nothing_is_left(shape: str, service: InnerCommand) -> None:
    service.behave("--load-seconds", "0.5", "--fail", "failed", "--shape", shape)
    began = time.monotonic()
    error = start(expect=1)["error"]
    assert time.monotonic() - began < 10
    assert error["type"] in ("model_load_failed", "model_load_error")
    assert "Repo id must be in the form" in error["message"]
    assert "it was stopped and unregistered" in error["message"]
    assert any("Failed to load model" in line for line in error["log_tail"])
    assert error["fix"]
    assert (services(), processes()) == ({}, [])


@pytest.mark.parametrize("options", [(), ("--no-wait",)])
def test_a_service_that_dies_at_once_is_an_error_with_its_log_and_nothing_is_left(
    options: tuple[str, ...], service: InnerCommand
) -> None:
    service.behave("--load-seconds", "60", "--crash-after", "0.2")
    error = start(*options, expect=1)["error"]
    assert error["type"] == "service_died"
    assert "exited with status 1" in error["message"]
    assert any("CUDA error: out of memory" in line for line in error["log_tail"])
    assert (services(), processes()) == ({}, [])


def test_a_start_that_is_not_ready_in_time_goes_on_and_can_be_waited_for(service: InnerCommand) -> None:
    service.behave("--load-seconds", "9")
    error = start("--timeout", "5", expect=4)["error"]
    assert "it keeps running and is registered" in error["message"]
    assert error["last_seen"]["state"] == "model_loading"
    (job_id,) = services()
    assert f"wait_ready.py --job-id {job_id}" in error["fix"]
    assert run_script("wait_ready", "--timeout", "0.3", expect=4).document["error"]["type"] == "not_ready"
    ready = run_script("wait_ready", "--job-id", job_id).document
    assert (ready["job_id"], ready["ready"]) == (job_id, True)


def test_without_waiting_it_returns_at_once_and_says_that_it_is_not_ready(service: InnerCommand) -> None:
    service.behave("--load-seconds", "2")
    document = start("--no-wait")
    assert (document["ready"], document["seconds"] < 3) == (False, True)
    assert run_script("wait_ready", "--network-arch", "smollm2").document["job_id"] == document["job_id"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_while_waiting_leaves_it_running_registered_and_said(
    number: signal.Signals, status: int, service: InnerCommand
) -> None:
    service.behave("--load-seconds", "60")
    starter = spawn("start_service", *START)
    eventually(lambda: registered("running"), timeout=20)
    time.sleep(0.3)
    starter.send_signal(number)
    stdout, stderr = starter.communicate(timeout=20)
    assert starter.returncode == status, stderr
    error = one_document(stdout)["error"]
    (job_id,) = services()
    assert f"{job_id} keeps running and is registered" in error["message"]
    assert f"wait_ready.py --job-id {job_id}" in error["fix"]
    assert f"stop_service.py --job-id {job_id}" in error["fix"]
    assert processes()


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.4, 0.6])
def test_interrupted_twice_at_any_moment_the_registry_tells_what_runs_and_a_document_is_printed(
    delay: float, service: InnerCommand
) -> None:
    service.behave("--load-seconds", "60")
    starter = spawn("start_service", *START)
    time.sleep(delay)
    starter.send_signal(signal.SIGINT)
    time.sleep(0.02)
    starter.send_signal(signal.SIGINT)
    stdout, stderr = starter.communicate(timeout=30)
    running = {process.environ()["TAO_JOB_ID"] for process in processes()}
    assert {job_id: entry["status"] for job_id, entry in services().items()} == dict.fromkeys(running, "running")
    if starter.returncode == -signal.SIGINT or "Traceback" in stderr:
        assert not running, "interrupted before the program itself had begun, and yet something runs"
        return
    error = one_document(stdout)["error"]
    assert (starter.returncode, error["type"]) == (130, "interrupted")
    assert all(job_id in error["message"] for job_id in running)


@pytest.mark.parametrize("point", ["at once", "reserved", "process runs", "registered", "waiting"])
def test_kill_9_of_a_start_loses_and_orphans_nothing(point: str, service: InnerCommand) -> None:
    service.behave("--load-seconds", "1.5")
    starter = spawn("start_service", *START)
    if point == "reserved":
        eventually(lambda: registered("starting") or registered("running"), timeout=20, every=0.001)
    elif point == "process runs":
        eventually(processes, timeout=20, every=0.001)
    elif point != "at once":
        eventually(lambda: registered("running"), timeout=20, every=0.001)
    if point == "waiting":
        time.sleep(0.5)
    starter.kill()
    starter.communicate()

    report = run_script("registry", "reconcile").document
    running = {process.environ()["TAO_JOB_ID"] for process in processes()}
    assert {job_id for job_id, entry in services().items() if entry["status"] == "running"} == running
    assert not report["unknown"]
    if point in ("process runs", "registered", "waiting"):
        assert len(running) == 1
        run_script("wait_ready", "--timeout", "30")
    start()
    assert len(run_script("stop_service", "--all").document["stopped"]) == len(running) + 1
    assert (services(), processes()) == ({}, [])


def test_a_dry_run_shows_the_command_and_creates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandb_verySecretValue")
    done = run_script("start_service", *START, "--env", "WANDB_API_KEY", "--dry-run")
    assert done.document["secret_env"] == ["WANDB_API_KEY"]
    assert "inference_service.microservices.smollm2" in json.dumps(done.document["would_create"])
    assert "wandb_verySecretValue" not in done.stdout + done.stderr
    assert not Path(os.environ["TAO_INF_MS_STATE_FILE"]).exists()
    assert processes() == []


def test_bad_input_is_refused_before_anything_changes() -> None:
    assert start("--timeout", "0", expect=2)["error"]["type"] == "bad_timeout"
    assert start("--host-port", "0", expect=2)["error"]["fix"]
    with TaoServer() as stranger:
        assert start("--host-port", str(stranger.port), expect=2)["error"]["type"] == "port_in_use"
    assert not Path(os.environ["TAO_INF_MS_STATE_FILE"]).exists() or services() == {}
    assert processes() == []


def test_services_started_at_once_get_their_own_ports_and_are_all_stopped(service: InnerCommand) -> None:
    starters = [spawn("start_service", *START) for _ in range(3)]
    documents = []
    for starter in starters:
        stdout, stderr = starter.communicate(timeout=60)
        assert starter.returncode == 0, stdout + stderr
        documents.append(one_document(stdout))
    assert len({document["host_port"] for document in documents}) == 3
    stopped = run_script("stop_service", "--all").document
    assert set(stopped["stopped"]) == {document["job_id"] for document in documents}
    assert (services(), processes()) == ({}, [])
    assert run_script("stop_service", "--all").document == {"stopped": [], "failed": [], "already_gone": []}


def test_a_port_that_another_registrys_service_took_first_is_exchanged(
    service: InnerCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.behave("--bind-late", "1.0")
    starter = spawn("start_service", *START)
    eventually(lambda: registered("running"), timeout=20, every=0.002)
    (entry,) = services().values()
    with TaoServer(str(uuid.uuid4()), port=entry["host_port"]) as stranger:
        stdout, stderr = starter.communicate(timeout=60)
        assert starter.returncode == 0, stdout + stderr
        document = one_document(stdout)
        assert (document["ready"], document["job_id"]) == (True, entry["job_id"])
        assert document["host_port"] != stranger.port
    assert len(processes()) == 1


def test_a_service_that_belongs_to_somebody_else_is_never_ready() -> None:
    other, ours = str(uuid.uuid4()), str(uuid.uuid4())
    with TaoServer(other) as server:
        run_script("registry", "write", "--job-id", ours, "--network-arch", "smollm2", "--platform", "local-process",
                   "--host-url", server.url)  # fmt: skip
        error = run_script("wait_ready", "--job-id", ours, expect=1).document["error"]
    assert (error["type"], error["foreign_job_id"]) == ("foreign_service", other)


def test_waiting_without_saying_for_which_of_several_is_a_decision() -> None:
    with TaoServer() as server:
        for _ in range(2):
            run_script("registry", "write", "--job-id", str(uuid.uuid4()), "--network-arch", "smollm2", "--platform",
                       "local-process", "--host-url", server.url)  # fmt: skip
        needs = run_script("wait_ready", expect=3).document["needs"]
    assert len(needs[0]["options"]) == 2
    assert run_script("wait_ready", "--timeout", "nan", expect=2).document["error"]["type"] == "bad_timeout"


def test_stopping_without_a_name_asks_to_confirm_the_latest_and_then_stops_that_one() -> None:
    first, second = start()["job_id"], start()["job_id"]
    need = run_script("stop_service", expect=3).document["needs"][0]
    assert second in need["question"]
    assert [option["job_id"] for option in need["options"]] == [second, first]
    assert "--yes" in need["answer_with"]
    assert set(services()) == {first, second}
    assert run_script("stop_service", "--yes").document["stopped"] == [second]
    assert run_script("registry", "list").document["latest"] == first
    assert run_script("stop_service", "--job-id", first[:8]).document["stopped"] == [first]
    assert processes() == []


def test_stopping_twice_is_success_and_a_typing_error_is_not() -> None:
    job_id = start()["job_id"]
    assert run_script("stop_service", "--job-id", job_id).document["stopped"] == [job_id]
    again = run_script("stop_service", "--job-id", job_id).document
    assert (again["stopped"], again["already_gone"]) == ([], [job_id])
    other = start()["job_id"]
    error = run_script("stop_service", "--job-id", other, "--job-id", "not-a-job", expect=2).document["error"]
    assert error["job_ids"] == [other]
    assert processes(), "nothing may be stopped when a part of the input is refused"
    run_script("stop_service", "--job-id", other, "--all", expect=2)
    assert processes()


def test_a_service_that_the_registry_lost_is_stopped_by_its_job_id_all_the_same() -> None:
    job_id = start()["job_id"]
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("stop_service", "--job-id", job_id).document["stopped"] == [job_id]
    assert (services(), processes()) == ({}, [])


def test_what_cannot_be_stopped_is_exit_status_1_and_stays_registered() -> None:
    ours, strange = start()["job_id"], str(uuid.uuid4())
    run_script("registry", "write", "--job-id", strange, "--network-arch", "cosmos-rl", "--platform", "slurm",
               "--host-url", "http://127.0.0.1:1")  # fmt: skip
    error = run_script("stop_service", "--all", expect=1).document["error"]
    assert error["stopped"] == [ours]
    assert [failure["job_id"] for failure in error["failed"]] == [strange]
    assert f"--job-id {strange}" in error["fix"]
    assert list(services()) == [strange]
    run_script("registry", "remove", strange)


def test_a_service_that_died_behind_our_back_is_found_and_cleaned_up() -> None:
    job_id = start()["job_id"]
    for process in processes():
        process.kill()
    eventually(lambda: not processes())
    assert run_script("registry", "reconcile").document["gone"] == [job_id]
    assert services()[job_id]["status"] == "gone"
    assert run_script("service_logs", "--job-id", job_id).document["lines"]
    assert run_script("stop_service", "--job-id", job_id).document["stopped"] == [job_id]
    assert services() == {}


def test_logs_are_one_document_with_the_last_lines_and_no_secret(
    service: InnerCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.behave("--fail", "failed")
    job_id = start("--no-wait")["job_id"]
    monkeypatch.setenv("HF_TOKEN", "Repo id must be in the form")
    lines = run_script("service_logs", "--job-id", job_id, "--tail", "1").document["lines"]
    assert lines == ["Failed to load model: [redacted] 'repo_name' or 'namespace/repo_name'"]
    assert len(run_script("service_logs", "--job-id", job_id).document["lines"]) == 3
    run_script("service_logs", "--job-id", job_id, "--tail", "-1", expect=2)
    run_script("service_logs", "--job-id", "unknown", expect=2)


def test_followed_logs_are_json_lines_until_the_service_ends() -> None:
    job_id = start()["job_id"]
    follower = spawn("service_logs", "--job-id", job_id, "--follow")
    assert follower.stdout is not None
    first = json.loads(follower.stdout.readline())
    assert "Starting TaoServer" in first["line"]
    run_script("stop_service", "--job-id", job_id)
    stdout, stderr = follower.communicate(timeout=20)
    assert all("line" in json.loads(line) for line in stdout.splitlines())
    assert follower.returncode == 0, stderr


def test_a_launch_spec_is_started_as_it_was_built() -> None:
    built = run_script("build_payload", *START)
    job_id = built.document["job_id"]
    started = run_script("start_service", "--launch-spec", "-", stdin=built.stdout).document
    assert started["job_id"] == job_id
    again = run_script("start_service", "--launch-spec", "-", stdin=built.stdout, expect=2).document["error"]
    assert job_id in again["message"]
    assert list(services()) == [job_id]

"""Forgotten services as a user and cron meet them: --max-hours, --expired, --idle and the list, with real processes.

The service is the double of a TAO server, run by local-process as the inner command.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
from doubles.inner_command import InnerCommand, processes
from doubles.tao_server import TaoServer
from services import register
from support import SCRIPTS, eventually, one_document, run_script

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
START = ("--platform", "local-process", "--network-arch", "smollm2", "--model-path", MODEL)
FRACTION_OF_A_SECOND = "0.00001"


@pytest.fixture(autouse=True)
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_state: None) -> Iterator[InnerCommand]:
    """What a started service does: by default it has been idle for 45 minutes when it starts."""
    inner = InnerCommand(tmp_path, monkeypatch)
    inner.behave("--idle-minutes", "45")
    yield inner
    run_script("stop_service", "--all", expect=None)
    left = processes()
    for process in left:
        process.kill()
    assert left == []


def start(*options: str, expect: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = run_script("start_service", *START, *options, expect=expect).document
    return document


def cron(*options: str, expect: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = run_script("stop_service", *options, expect=expect).document
    return document


def services(*options: str) -> dict[str, dict[str, Any]]:
    return {entry["job_id"]: entry for entry in run_script("registry", "list", *options).document["services"]}


def test_max_hours_is_a_deadline_that_expired_keeps() -> None:
    began = datetime.now(timezone.utc)
    long, short = start("--max-hours", "2.5"), start("--max-hours", FRACTION_OF_A_SECOND)
    deadline = datetime.fromisoformat(long["stop_after"])
    assert timedelta(hours=2.5) <= deadline - began < timedelta(hours=2.5, minutes=1)
    assert services("--offline")[long["job_id"]]["stop_after"] == long["stop_after"]
    done = cron("--expired")
    assert done["stopped"] == [short["job_id"]]
    assert [kept["job_id"] for kept in done["kept"]] == [long["job_id"]]
    assert len(processes()) == 1


def test_a_lost_registry_does_not_lose_the_deadline() -> None:
    started = start("--max-hours", "1")
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [started["job_id"]]
    assert services("--offline")[started["job_id"]]["stop_after"] == started["stop_after"]
    assert start()["stop_after"] is None


def test_a_deadline_of_a_launch_spec_is_kept_and_can_be_chosen_anew() -> None:
    built = run_script("build_payload", *START, "--max-hours", "2")
    assert built.document["max_hours"] == 2
    spec = ("--launch-spec", "-", "--max-hours", "0.5")
    began = datetime.now(timezone.utc)
    started = run_script("start_service", *spec, stdin=built.stdout).document
    assert datetime.fromisoformat(started["stop_after"]) - began < timedelta(hours=1)


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_hours_that_are_none_are_refused_before_anything_changes(hours: str) -> None:
    error = start("--max-hours", hours, expect=2)["error"]
    assert "--max-hours" in error["fix"] + error["message"]
    changed = {**run_script("build_payload", *START).document, "max_hours": 0}
    text = json.dumps(changed)
    assert run_script("start_service", "--launch-spec", "-", stdin=text, expect=2).document["error"]["fix"]
    assert processes() == []


def test_nothing_to_do_is_done() -> None:
    nothing: dict[str, Any] = {"stopped": [], "failed": [], "already_gone": [], "kept": []}
    assert cron("--expired") == cron("--idle", "30m") == cron("--expired", "--idle", "1s") == nothing


@pytest.mark.parametrize(
    "options",
    [("--idle", "30"), ("--idle", "-1m"), ("--idle", "30m", "--all"), ("--expired", "--job-id", "x"), ("--idle", "")],
)
def test_what_makes_no_sense_is_refused_and_stops_nothing(options: tuple[str, ...]) -> None:
    start()
    assert cron(*options, expect=2)["error"]["fix"]
    cron("--expired", "--yes", expect=2)
    assert len(processes()) == 1


def test_the_idle_are_stopped_and_the_loading_and_the_used_are_kept(service: InnerCommand) -> None:
    idle, used = start()["job_id"], start()
    service.behave("--load-seconds", "60", "--idle-minutes", "45")
    loading = start("--no-wait")["job_id"]
    service.behave("--fail", "failed", "--idle-minutes", "45")
    failed = start("--no-wait")["job_id"]
    requests.post(used["url"], json={"messages": [{"role": "user", "content": "hello"}]}, timeout=10)
    done = cron("--idle", "30m")
    assert done["stopped"] == [idle]
    reasons = {kept["job_id"]: kept["reason"] for kept in done["kept"]}
    assert "its last request was 0" in reasons[used["job_id"]]
    assert "model_loading" in reasons[loading]
    assert "model_load_failed" in reasons[failed]
    assert len(processes()) == 3


def test_a_request_that_is_being_answered_keeps_its_service_and_gets_its_answer(service: InnerCommand) -> None:
    service.behave("--idle-minutes", "45", "--streaming")
    started = start()
    with TaoServer(started["job_id"], idle_minutes=45, streaming=True, token_delay=0.3) as slow:
        run_script("registry", "write", "--job-id", started["job_id"], "--network-arch", "smollm2", "--platform",
                   "local-process", "--host-url", slow.url)  # fmt: skip
        ask = ("--job-id", started["job_id"], "--prompt", "one two three four", "--accept-defaults", "--stream")
        command = [sys.executable, str(SCRIPTS / "send_request.py"), *ask]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
            eventually(lambda: slow.requests)
            slow.last_request -= 3600
            slow.started -= 7200
            (kept,) = cron("--idle", "30m")["kept"]
            assert "no answer yet" in kept["reason"] or "connected" in kept["reason"]
            stdout, stderr = asking.communicate(timeout=60)
        assert asking.returncode == 0, stderr
        assert "four" in stdout
        assert cron("--idle", "30m")["stopped"] == [started["job_id"]]


def test_a_start_under_way_is_left_alone(service: InnerCommand) -> None:
    service.behave("--load-seconds", "2")
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *START, "--max-hours", FRACTION_OF_A_SECOND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as starter:
        for _ in range(3):
            cron("--idle", "5m")
        stdout, stderr = starter.communicate(timeout=60)
    assert starter.returncode == 0, stderr
    assert cron("--expired")["stopped"] == [one_document(stdout)["job_id"]]


def test_what_is_not_ours_or_says_nothing_is_left_alone() -> None:
    ours = start()["job_id"]
    with TaoServer(str(uuid.uuid4()), idle_minutes=500) as foreign:
        register("foreign", "smollm2", foreign.url)
        register("silent", "smollm2", "http://127.0.0.1:9")
        done = cron("--idle", "30m")
    assert done["stopped"] == [ours]
    assert {kept["job_id"] for kept in done["kept"]} == {"foreign", "silent"}
    assert set(services("--offline")) == {"foreign", "silent"}


def test_a_service_of_another_registry_is_not_seen(tmp_path: Path) -> None:
    other = {"TAO_INF_MS_STATE_FILE": str(tmp_path / "others.json")}
    run_script("start_service", *START, "--max-hours", FRACTION_OF_A_SECOND, env=other)
    assert cron("--expired", "--idle", "1s")["stopped"] == []
    assert run_script("stop_service", "--expired", env=other).document["stopped"]


@pytest.mark.parametrize("option", [("--expired",), ("--idle", "30m")], ids=" ".join)
def test_several_crons_at_once_stop_each_service_once_and_none_fails(option: tuple[str, ...]) -> None:
    job_ids = {start("--max-hours", FRACTION_OF_A_SECOND)["job_id"] for _ in range(3)}
    command = [sys.executable, str(SCRIPTS / "stop_service.py"), *option]
    crons = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    documents = []
    for process in crons:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stdout + stderr
        documents.append(one_document(stdout))
    assert {job_id for document in documents for job_id in document["stopped"]} == job_ids
    assert (services(), processes()) == ({}, [])


def test_a_cron_that_is_killed_leaves_what_the_next_one_finishes() -> None:
    job_ids = {start("--max-hours", FRACTION_OF_A_SECOND)["job_id"] for _ in range(2)}
    for delay in (0.1, 0.3):
        command = [sys.executable, str(SCRIPTS / "stop_service.py"), "--expired"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(delay)  # The point of its life at which it is killed.
            process.kill()
    left = set(services("--offline"))
    assert left <= job_ids
    assert set(cron("--expired")["stopped"]) == left
    assert (services(), processes()) == ({}, [])


def test_what_cannot_be_stopped_is_exit_status_1_and_tells_of_the_rest_too() -> None:
    ours = start("--max-hours", FRACTION_OF_A_SECOND)["job_id"]
    past = "2026-01-01T00:00:00+00:00"
    register("on-mainframe", "cosmos-rl", "http://127.0.0.1:9", platform="mainframe", stop_after=past)
    register("for-ever", "cosmos-rl", "http://127.0.0.1:9")
    error = cron("--expired", expect=1)["error"]
    assert error["stopped"] == [ours]
    assert [failure["job_id"] for failure in error["failed"]] == ["on-mainframe"]
    assert [kept["job_id"] for kept in error["kept"]] == ["for-ever"]
    assert set(services("--offline")) == {"on-mainframe", "for-ever"}
    run_script("registry", "remove", "on-mainframe")


def test_the_list_tells_age_state_idle_minutes_and_cost(tmp_path: Path) -> None:
    started = start("--max-hours", "1")
    prices = tmp_path / "prices.yaml"
    row = "{platform: local-process, usd_per_gpu_hour: 2, effective_from: 2026-01-01, source: test}"
    prices.write_text(f"gpu_hour_prices: [{row}]\n")
    hours_ago = (datetime.now(timezone.utc) - timedelta(hours=3)).isoformat()
    register("two-gpus", "cosmos-rl", "http://127.0.0.1:9", num_gpus=2, started_at=hours_ago)
    register("dead", "cosmos-rl", "http://127.0.0.1:9", num_gpus=2, dead=True)
    register("elsewhere", "cosmos-rl", "http://127.0.0.1:9", platform="mainframe", started_at="")
    listed = {
        entry["job_id"]: entry
        for entry in run_script("registry", "list", env={"TAO_INF_PRICING": str(prices)}).document["services"]
    }
    ours, priced, dead, unknown = (listed[name] for name in (started["job_id"], "two-gpus", "dead", "elsewhere"))
    assert (ours["state"], ours["stop_after"], ours["cost_usd"]) == ("RUNNING", started["stop_after"], None)
    assert 45 <= ours["idle_minutes"] < 46
    assert 0 < ours["age_seconds"] < 60
    assert (priced["state"], priced["idle_minutes"]) == ("RUNNING", None)
    assert 12 <= float(priced["cost_usd"]) < 12.1
    assert (dead["state"], dead["cost_usd"]) == ("EXITED", None)
    assert (unknown["state"], unknown["age_seconds"]) == ("UNKNOWN", None)
    assert "mainframe" in unknown["state_reason"]
    assert run_script("registry", "show", "dead").document["services"][0]["state"] == "EXITED"
    run_script("registry", "remove", "elsewhere")


def test_a_service_and_a_daemon_that_hang_hold_the_list_up_for_seconds_at_most() -> None:
    # Connections are accepted into the backlog of this socket, and nobody ever answers them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        register("hangs", "cosmos-rl", f"http://{address}")
        daemon = {"docker_host": f"tcp://{address}"}
        register("docker", "cosmos-rl", "http://127.0.0.1:9", platform="local-docker", extras=daemon)
        began = time.monotonic()
        listed = services()
        assert time.monotonic() - began < 8
    assert listed["hangs"]["idle_minutes"] is None
    assert (listed["docker"]["state"], listed["hangs"]["state"]) == ("UNKNOWN", "RUNNING")
    assert "state" not in services("--offline")["docker"]
    run_script("registry", "remove", "docker")


def test_many_services_are_listed_as_quickly_as_one() -> None:
    for number in range(40):
        register(f"job-{number}", "cosmos-rl", "http://127.0.0.1:9")
    began = time.monotonic()
    listed = services()
    assert time.monotonic() - began < 8
    assert len(listed) == 40
    assert {entry["state"] for entry in listed.values()} == {"RUNNING"}

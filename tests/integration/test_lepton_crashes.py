"""A start on lepton that is killed, interrupted or cut off at each of its steps: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lepton_names as names
import pytest
from doubles.lepton_api import Fault, LeptonApi
from lepton_support import ASK, START, start, token_files, workspace
from support import SCRIPTS, eventually, run_script

CREATE = "/(deployments|endpoints)"


@pytest.fixture(params=[False, True], ids=["deployments", "endpoints"])
def lepton(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeptonApi]:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret_value_4711")
    with workspace(monkeypatch, tmp_path, new_routes=request.param, deleting_seconds=0.05) as there:
        yield there


def starting() -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *START, "--env", "HF_TOKEN"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_at(fault: Fault) -> str:
    """The job_id of a start that is killed when it gets there."""
    process = starting()
    assert fault.reached.wait(90)
    process.kill()
    process.communicate()
    fault.release.set()
    state = json.loads(Path(os.environ["TAO_INF_MS_STATE_FILE"]).read_text())
    (job_id,) = (str(key) for key in state if key != "latest")
    return job_id


def running(lepton: LeptonApi) -> list[str]:
    return [name for name, each in list(lepton.endpoints.items()) if each.deleted is None]


def services() -> list[str]:
    return [entry["job_id"] for entry in run_script("registry", "list").document["services"]]


@pytest.mark.parametrize(
    ("method", "path", "done"),
    [
        ("GET", "/shapes", False),
        ("POST", "/usersecrets", True),
        ("POST", CREATE, False),
    ],
    ids=["before anything", "after the secrets", "before the endpoint"],
)
def test_a_start_killed_before_its_endpoint_leaves_nothing_once_reconciled(
    method: str, path: str, done: bool, lepton: LeptonApi
) -> None:
    job_id = killed_at(lepton.fault(method, path, hold=True, drop=True, done=done))
    assert run_script("registry", "reconcile").document["settled"] == [job_id]
    assert (running(lepton), lepton.secrets, token_files(), services()) == ([], {}, [], [])


def test_a_start_killed_after_its_endpoint_is_taken_up_with_a_token_that_works(lepton: LeptonApi) -> None:
    job_id = killed_at(lepton.fault("POST", CREATE, hold=True, done=True))
    assert run_script("registry", "reconcile").document["settled"] == [job_id]
    assert run_script("wait_ready", "--job-id", job_id).document["ready"] is True
    assert run_script("send_request", *ASK).document["status"] == 200
    assert run_script("stop_service", "--job-id", job_id).document["stopped"] == [job_id]
    assert (running(lepton), lepton.secrets, token_files()) == ([], {}, [])


def test_a_start_killed_before_its_endpoint_has_an_address_is_taken_up(lepton: LeptonApi) -> None:
    lepton.address_seconds = lepton.starting_seconds = 3
    process = starting()
    eventually(lambda: running(lepton) and token_files(), timeout=90)
    process.kill()
    process.communicate()
    (job_id,) = run_script("registry", "reconcile").document["settled"]
    eventually(lambda: lepton.show(lepton.only(), [])["status"].get("external_url", "") or not lepton.new_routes)
    assert run_script("wait_ready", "--job-id", job_id).document["ready"] is True


def test_the_next_start_clears_up_after_one_that_was_killed(lepton: LeptonApi) -> None:
    killed = killed_at(lepton.fault("POST", "/usersecrets", hold=True, drop=True, done=True))
    job_id = start()["job_id"]
    assert services() == [job_id]
    assert job_id != killed
    assert list(lepton.secrets) == [names.secret_name(job_id, "HF_TOKEN")]


def test_a_lost_registry_loses_no_service(lepton: LeptonApi) -> None:
    job_id = start()["job_id"]
    (token,) = lepton.only().tokens
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [job_id]
    assert run_script("send_request", "--job-id", job_id, *ASK).document["status"] == 200
    assert lepton.only().tokens == [token]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("path", ["/usersecrets", CREATE])
def test_an_interruption_in_the_middle_of_a_request_takes_everything_back(
    path: str, number: signal.Signals, lepton: LeptonApi
) -> None:
    fault = lepton.fault("POST", path, hold=True, done=True)
    process = starting()
    assert fault.reached.wait(90)
    process.send_signal(number)
    fault.release.set()
    stdout, _stderr = process.communicate(timeout=90)
    assert process.returncode in (130, 143)
    assert "error" in json.loads(stdout)
    assert (running(lepton), lepton.secrets, token_files(), services()) == ([], {}, [], [])

"""A service on lepton as a user has it: the scripts' command lines, the real client, a double of Lepton's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lepton_names as names
import psutil
import pytest
from doubles.lepton_api import LeptonApi
from lepton_support import ASK, BOTH, START, start, token_files, workspace
from support import SCRIPTS, eventually, run_script

PLANTED = "hf_planted_secret_value_4711"


def registry_text() -> str:
    return Path(os.environ["TAO_INF_MS_STATE_FILE"]).read_text()


@BOTH
def test_the_whole_life_cycle_with_the_token_on_every_request(
    new_routes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"starting_seconds": 0.3, "load_seconds": 0.7}
    with workspace(monkeypatch, tmp_path, new_routes=new_routes, **settings) as lepton:
        document = start()
        job_id = document["job_id"]
        assert document["ready"] is True
        assert document["platform_job_id"] == names.endpoint_name(job_id)
        assert document["host_url"] == f"{lepton.origin}/at/{document['platform_job_id']}"
        (file,) = token_files()
        entry = json.loads(registry_text())[job_id]
        assert entry["auth_file"] == str(file)
        assert entry["resource_shape"] == "gpu.1xh100-sxm"
        (token,) = lepton.only().tokens
        assert file.read_text().strip() == token
        assert token.startswith("generated-")

        assert run_script("wait_ready", "--job-id", job_id).document["ready"] is True
        answer = run_script("send_request", *ASK).document
        assert answer["content"] == "You asked: what is this?"
        assert "loading the model" in run_script("service_logs", "--job-id", job_id).stdout
        endpoint = lepton.only()
        assert 401 not in [status for _path, status in endpoint.requests]
        assert ("/v1/chat/completions", 200) in endpoint.requests

        stopped = run_script("stop_service", "--job-id", job_id).document
        assert (stopped["stopped"], stopped["failed"]) == ([job_id], [])
        assert endpoint.deleted is not None
        assert (lepton.secrets, token_files()) == ({}, [])
        assert run_script("registry", "list").document["services"] == []


@BOTH
def test_without_the_token_nobody_is_let_in(new_routes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    # An older workspace gives an endpoint no token by itself, and would let everybody in.
    for secure_defaults in (True, False, None):
        with workspace(monkeypatch, tmp_path, new_routes=new_routes, secure_defaults=secure_defaults) as lepton:
            document = start()
            assert len(lepton.only().tokens) == 1
            assert requests.post(document["url"], json={}, timeout=10).status_code == 401
            assert run_script("send_request", "--job-id", document["job_id"], *ASK).document["status"] == 200
            run_script("stop_service", "--job-id", document["job_id"])


@BOTH
def test_a_planted_secret_is_only_where_lepton_keeps_secrets(
    new_routes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    with workspace(monkeypatch, tmp_path, new_routes=new_routes, starting_seconds=0.5) as lepton:
        seen: set[str] = set()
        done = threading.Event()
        watcher = threading.Thread(target=watch_argv, args=(seen, done))
        watcher.start()
        started = run_script("start_service", *START, "--env", "HF_TOKEN", "--env", "WANDB_PROJECT=demo")
        answered = run_script("send_request", *ASK)
        endpoint = lepton.only()
        assert lepton.container_environment(endpoint)["HF_TOKEN"] == PLANTED
        assert list(lepton.secrets) == [names.secret_name(started.document["job_id"], "HF_TOKEN")]
        printed = [started.stdout, started.stderr, answered.stdout, answered.stderr, registry_text()]
        (token,) = endpoint.tokens
        stopped = run_script("stop_service", "--all", "--yes")
        done.set()
        watcher.join()
        assert any("start_service.py" in argv for argv in seen)
        for text in (*seen, *printed, stopped.stdout, stopped.stderr):
            assert PLANTED not in text
            assert token not in text
            assert lepton.token not in text
        assert PLANTED not in json.dumps(endpoint.body)
        assert lepton.secrets == {}
        holders = [call.path for call in lepton.calls if PLANTED in json.dumps(call.body)]
        assert holders == ["/usersecrets"]
        left = [file for file in tmp_path.rglob("*") if file.is_file() and PLANTED.encode() in file.read_bytes()]
        assert left == []


def watch_argv(seen: set[str], done: threading.Event) -> None:
    """The command line of every process of this machine that is seen until `done`."""
    while not done.is_set():
        for process in psutil.process_iter():
            try:
                seen.add(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        done.wait(0.02)


def test_a_dry_run_needs_no_workspace_and_shows_secrets_as_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    done = run_script("start_service", *START, "--env", "HF_TOKEN", "--max-hours", "8", "--dry-run")
    planned: Any = done.document["would_create"]
    assert planned["secrets"]["HF_TOKEN"].endswith("_HF_TOKEN")
    assert planned["endpoint"]["metadata"]["name"] == names.endpoint_name(done.document["job_id"])
    assert PLANTED not in done.stdout + done.stderr


def test_help_shows_the_options_of_lepton_without_its_client() -> None:
    program = (
        "import runpy, sys; sys.argv[1:] = ['--platform', 'lepton', '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'leptonai', 'requests', 'ray', 'pydantic'} & set(sys.modules)"
    )
    code = f"import sys; sys.argv = [{str(SCRIPTS / 'start_service.py')!r}]\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for option in ("--resource-shape", "--dedicated-node-group", "--image-pull-secret"):
        assert option in done.stdout


@pytest.fixture
def lepton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeptonApi]:
    with workspace(monkeypatch, tmp_path) as there:
        yield there


def test_max_hours_is_in_the_registry_and_survives_its_loss(lepton: LeptonApi) -> None:
    job_id = start("--max-hours", "2")["job_id"]
    stop_after = json.loads(registry_text())[job_id]["stop_after"]
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [job_id]
    assert json.loads(registry_text())[job_id]["stop_after"] == stop_after


def test_several_shapes_are_a_question_and_nothing_is_created(lepton: LeptonApi) -> None:
    asked = start("--num-gpus", "4", expect=3)["needs"]
    (need,) = asked
    assert need["answer_with"] == "--resource-shape ID"
    assert {option["resource_shape"] for option in need["options"]} == {"gpu.4xh100-sxm", "gpu.4xa100-40g"}
    assert (lepton.paths("POST"), lepton.secrets) == ([], {})
    document = start("--num-gpus", "4", "--resource-shape", "gpu.4xa100-40g")
    assert document["num_gpus"] == 4
    assert lepton.only().wanted.shape == "gpu.4xa100-40g"


def test_the_node_group_is_found_by_its_name(lepton: LeptonApi) -> None:
    start("--dedicated-node-group", "team-h100")
    assert lepton.only().wanted.node_groups == ["ng-1a2b"]
    error = start("--dedicated-node-group", "other", expect=2)["error"]
    assert "team-h100" in error["fix"]
    assert len(lepton.endpoints) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--image-pull-secret", "nothing"), "no image pull secret"),
        (("--resource-shape", "gpu.1xb200"), "no shape"),
        (("--num-gpus", "7"), "no shape with 7"),
    ],
)
def test_what_lepton_refuses_leaves_nothing(
    options: tuple[str, ...], said: str, lepton: LeptonApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    done = run_script("start_service", *START, "--env", "HF_TOKEN", *options, expect=None)
    assert done.status in (1, 2)
    assert said in done.document["error"]["message"]
    assert (lepton.endpoints, lepton.secrets, token_files()) == ({}, {}, [])
    assert run_script("registry", "list").document["services"] == []


def test_a_configuration_that_cannot_run_fails_at_once_with_leptons_words(
    lepton: LeptonApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = ("ConfigError", "Back-off pulling image: 401 Unauthorized")
    lepton.on_create = lambda endpoint: endpoint.issues.append(issue)
    error = start(expect=1)["error"]
    assert error["type"] == "service_died"
    assert "its configuration cannot run (ConfigError): Back-off pulling image: 401" in error["message"]
    assert "stopped and unregistered" in error["message"]
    assert [each.deleted is None for each in lepton.endpoints.values()] in ([], [False])
    assert (lepton.secrets, token_files()) == ({}, [])


def test_no_capacity_is_waited_for_and_explained(lepton: LeptonApi) -> None:
    lepton.on_create = lambda endpoint: endpoint.issues.append(("NoCapacity", "0/12 nodes are available"))
    done = run_script("start_service", *START, "--timeout", "2.5", expect=4)
    assert "no machine of that shape is free (NoCapacity): 0/12 nodes" in done.stderr
    seen = done.document["error"]["last_seen"]
    assert "NoCapacity" in seen["platform"]
    lepton.only().issues.clear()
    assert run_script("wait_ready").document["ready"] is True


def test_a_lost_token_is_replaced_before_the_next_request_and_said(lepton: LeptonApi) -> None:
    job_id = start()["job_id"]
    (file,) = token_files()
    before = file.read_text()
    file.unlink()
    done = run_script("send_request", *ASK)
    assert done.document["status"] == 200
    assert "setting a new one" in done.stderr
    assert file.read_text() != before
    assert lepton.only().tokens == [file.read_text().strip()]
    assert "setting a new one" not in run_script("wait_ready", "--job-id", job_id).stderr


def test_a_token_that_was_changed_by_somebody_else_is_an_error_that_says_so(lepton: LeptonApi) -> None:
    start()
    lepton.only().tokens = ["set-in-the-dashboard"]
    error = run_script("send_request", *ASK, expect=1).document["error"]
    assert error["type"] == "unauthorized"
    assert str(token_files()[0]) in error["fix"]


def test_an_endpoint_that_was_deleted_elsewhere_is_gone(lepton: LeptonApi) -> None:
    job_id = start()["job_id"]
    lepton.removed.append(lepton.endpoints.popitem()[1])
    assert run_script("registry", "reconcile").document["gone"] == [job_id]
    assert run_script("stop_service", "--job-id", job_id).document["failed"] == []
    assert token_files() == []


def test_a_workspace_that_cannot_be_asked_says_nothing_of_its_services(
    lepton: LeptonApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = start()["job_id"]
    lepton.token = "rotated"
    (unknown,) = run_script("registry", "reconcile").document["unknown"]
    assert (unknown["job_id"], unknown["platform"]) == (job_id, "lepton")
    assert "does not take the token" in unknown["reason"]
    refused = run_script("stop_service", "--job-id", job_id, expect=1)
    assert "does not take the token" in json.dumps(refused.document)
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "rotated")
    assert run_script("stop_service", "--job-id", job_id).document["stopped"] == [job_id]


def test_another_workspace_in_use_does_not_make_a_service_look_gone(
    lepton: LeptonApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = start()["job_id"]
    monkeypatch.setenv("LEPTON_WORKSPACE_ID", "another")
    monkeypatch.setenv("LEPTON_WORKSPACE_URL", lepton.url.replace(lepton.name, "another"))
    done = run_script("registry", "reconcile").document
    assert done["gone"] == []
    assert "there is no token for the Lepton workspace ws-double" in done["unknown"][0]["reason"]
    assert run_script("send_request", "--job-id", job_id, *ASK).document["status"] == 200


def test_the_log_is_followed_until_the_endpoint_ends(lepton: LeptonApi) -> None:
    job_id = start()["job_id"]
    command = [sys.executable, str(SCRIPTS / "service_logs.py"), "--job-id", job_id, "--follow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = (json.loads(line)["line"] for line in process.stdout)
    assert next(lines) == "Starting TaoServer"
    lepton.only().log.append("f\u00fcr alle\n".encode()[:2])
    lepton.only().log.append("f\u00fcr alle\n".encode()[2:])
    assert next(lines) == "loading the model"
    assert next(lines) == "f\u00fcr alle"
    lepton.only().deleted = 1e12
    assert list(lines) == []
    assert process.wait(20) == 0


def test_a_log_is_read_from_the_replica_where_none_is_collected(lepton: LeptonApi) -> None:
    job_id = start()["job_id"]
    lepton.collects_logs = False
    document = run_script("service_logs", "--job-id", job_id, "--tail", "1").document
    assert document["lines"] == ["loading the model"]


def test_preflight_names_the_workspace_and_what_it_has(lepton: LeptonApi) -> None:
    done = run_script("preflight", "--platform", "lepton")
    checks = {check["name"]: check for check in done.document["checks"]}
    assert all(check["ok"] for check in checks.values())
    assert "ws-double" in checks["credentials"]["found"]
    assert "gpu.4xa100-40g (4 x A100, 256 GiB)" in checks["shapes"]["found"]
    assert lepton.token not in done.stdout + done.stderr


def test_preflight_says_what_mends_each_failed_check(lepton: LeptonApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed() -> dict[str, Any]:
        checks = run_script("preflight", "--platform", "lepton", expect=1).document["error"]["checks"]
        (check,) = [check for check in checks if not check["ok"]]
        return dict(check)

    lepton.quota = (8.0, 8.0)
    assert (failed()["name"], failed()["found"]) == ("gpu quota", "8 of 8 GPU(s) in use")
    lepton.quota = (0.0, 8.0)
    lepton.fault("GET", "/workspace", status=503, times=99)
    assert failed()["name"] == "workspace"
    lepton.faults.clear()
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "wrong")
    assert "LEPTON_WORKSPACE_TOKEN=" in failed()["fix"]
    monkeypatch.delenv("LEPTON_WORKSPACE_TOKEN")
    assert failed()["name"] == "credentials"
    monkeypatch.delenv("LEPTON_WORKSPACE_ID")
    assert "LEPTON_WORKSPACE_ID=" in failed()["fix"]


def test_preflight_finds_secrets_that_a_lost_start_has_left(lepton: LeptonApi) -> None:
    left = names.secret_name("0b2c7d6e-1111-4222-8333-444455556666", "HF_TOKEN")
    lepton.secrets |= {left: "x", "SOMEBODY_ELSES": "y"}
    checks = run_script("preflight", "--platform", "lepton").document["checks"]
    (check,) = [check for check in checks if check["name"] == "secrets"]
    assert f"lep secret remove -n {left}" in check["found"]
    assert "SOMEBODY" not in check["found"]


def test_two_services_are_told_apart_and_stopped_together(lepton: LeptonApi) -> None:
    first, second = start("--no-wait")["job_id"], start("--no-wait")["job_id"]
    assert len({tuple(each.tokens) for each in lepton.endpoints.values()}) == 2
    for job_id in (first, second):
        run_script("wait_ready", "--job-id", job_id)
        assert run_script("send_request", "--job-id", job_id, *ASK).document["job_id"] == job_id
    assert set(run_script("stop_service", "--all", "--yes").document["stopped"]) == {first, second}
    eventually(lambda: all(each.deleted is not None for each in lepton.endpoints.values()))

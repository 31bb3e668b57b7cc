"""registry.py as agents and people use it, and its file as other tools of the seed's format use it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import SCRIPTS, run_script

J1, J2 = "0d9bf1de-0000-4000-8000-000000000001", "0d9bf1de-0000-4000-8000-000000000002"


def write(job_id: str, *more: str, url: str = "http://localhost:8080", expect: int = 0) -> Any:
    arguments = [
        "--job-id",
        job_id,
        "--network-arch",
        "cosmos-rl",
        "--platform",
        "local-docker",
        "--host-url",
        url,
        *more,
    ]
    return run_script("registry", "write", *arguments, expect=expect).document


def file_content() -> dict[str, Any]:
    document = json.loads(Path(os.environ["TAO_INF_MS_STATE_FILE"]).read_text())
    assert isinstance(document, dict)
    return document


def test_nothing_registered_is_an_empty_list() -> None:
    assert run_script("registry", "list").document == {"services": [], "latest": None}


def test_what_is_written_is_listed_and_shown_with_every_field() -> None:
    written = write(
        J1, "--image", "nvcr.io/x:1", "--model-path", "/m", "--platform-job-id", "7", url="http://localhost:9001/"
    )
    write(J2, url="http://10.0.0.9:8080")
    listed = run_script("registry", "list", "--offline").document
    assert [entry["job_id"] for entry in listed["services"]] == [J1, J2]
    assert listed["latest"] == J2
    shown = run_script("registry", "show", J1, "--offline").document
    assert shown["services"] == written["services"] == listed["services"][:1]
    (entry,) = shown["services"]
    assert (entry["host_url"], entry["host_port"], entry["platform_job_id"]) == ("http://localhost:9001", 9001, "7")
    assert (entry["image"], entry["model_path"], entry["status"]) == ("nvcr.io/x:1", "/m", "running")
    assert listed["services"][1]["host_port"] is None, "a port of another machine is none of ours"


def test_the_file_is_what_the_seeds_snippets_read() -> None:
    write(J1)
    write(J2)
    state, arch = file_content(), "cosmos-rl"
    candidates = [j for j, e in state.items() if j != "latest" and isinstance(e, dict) and e["network_arch"] == arch]
    assert candidates == [J1, J2]
    used_ports = {e["host_port"] for j, e in state.items() if j != "latest" and e["platform"] == "local-docker"}
    assert next(p for p in range(8080, 8200) if p not in used_ports) == 8081
    assert state[state["latest"]]["host_url"] == "http://localhost:8080"
    assert J2 in state["latest"]


def test_what_the_seeds_snippets_write_is_listed_and_kept() -> None:
    theirs = {"network_arch": "cosmos-rl", "platform": "brev", "host_url": "http://1.2.3.4:8080", "instance_id": "i-7"}
    file = Path(os.environ["TAO_INF_MS_STATE_FILE"])
    file.write_text(json.dumps({J1: theirs, "latest": J1}, indent=2))
    (entry,) = run_script("registry", "list").document["services"]
    assert (entry["instance_id"], entry["status"], entry["started_at"]) == ("i-7", "running", "")
    write(J2)
    assert file_content()[J1] == theirs


def test_a_job_id_can_be_cut_short_to_show_it() -> None:
    write(J1)
    assert run_script("registry", "show", J1[:8]).document["services"][0]["job_id"] == J1
    write(J2)
    needs = run_script("registry", "show", J1[:8], expect=3).document["needs"]
    assert [option["job_id"] for option in needs[0]["options"]] == [J1, J2]


@pytest.mark.parametrize("command", ["show", "remove"])
def test_an_unknown_job_id_is_refused(command: str) -> None:
    write(J1)
    error = run_script("registry", command, "no-such-service", expect=2).document["error"]
    assert error["type"] == "unknown_job_id"
    assert error["job_ids"] == [J1]


def test_a_service_is_removed_by_its_whole_job_id_alone() -> None:
    write(J1)
    write(J2)
    run_script("registry", "remove", J1[:8], expect=2)
    document = run_script("registry", "remove", J2).document
    assert document["removed"] == [J2]
    assert [entry["job_id"] for entry in document["services"]] == [J1]
    assert document["latest"] == J1


def test_writing_again_changes_what_is_given_and_keeps_the_rest() -> None:
    first = write(J1, "--image", "a", "--model-path", "/m")["services"][0]
    second = write(J1, "--image", "b", url="http://localhost:8099")["services"][0]
    assert second == {**first, "image": "b", "host_url": "http://localhost:8099", "host_port": 8099}


def test_a_job_id_of_another_service_is_not_overwritten() -> None:
    write(J1)
    before = file_content()
    arguments = ("--job-id", J1, "--network-arch", "smollm2", "--platform", "local-docker", "--host-url", "http://h:1")
    assert run_script("registry", "write", *arguments, expect=2).document["error"]["type"] == "job_id_taken"
    assert file_content() == before


@pytest.mark.parametrize(
    ("option", "value", "type"),
    [
        ("--network-arch", "cosmos-lr", "unknown_network_arch"),
        ("--platform", "local-dokcer", "unknown_platform"),
        ("--job-id", "latest", "bad_job_id"),
        ("--job-id", "two words", "bad_job_id"),
        ("--job-id", "-x", "usage"),
        ("--host-port", "70000", "bad_port"),
        ("--host-port", "many", "usage"),
        ("--host-url", "localhost:8080", "bad_host_url"),
        ("--host-url", "ftp://localhost", "bad_host_url"),
        ("--host-url", "http://", "bad_host_url"),
        ("--host-url", "http://h:99999", "bad_host_url"),
        ("--host-url", "http://h:0", "bad_host_url"),
        ("--host-url", "http://[::1", "bad_host_url"),
        ("--host-url", "http://h/?token=x", "bad_host_url"),
        ("--host-url", "http://user:pass@h", "secret_in_url"),
    ],
)
def test_what_is_no_registration_is_refused_and_nothing_is_written(option: str, value: str, type: str) -> None:
    error = write(J1, option, value, expect=2)["error"]
    assert error["type"] == type
    assert "user:pass" not in json.dumps(error)
    assert not Path(os.environ["TAO_INF_MS_STATE_FILE"]).exists()


def test_reconcile_marks_what_does_not_run_and_removes_it_when_asked() -> None:
    write(J1, "--platform", "local-process", "--network-arch", "smollm2")
    write(J2, "--platform", "slurm")
    document = run_script("registry", "reconcile").document
    assert document["gone"] == [J1]
    assert [entry["status"] for entry in document["services"]] == ["gone", "running"]
    assert document["latest"] == J2
    (unknown,) = document["unknown"]
    assert (unknown["job_id"], unknown["platform"]) == (J2, "slurm"), "a platform that cannot be asked says nothing"
    document = run_script("registry", "reconcile", "--remove-gone").document
    assert document["removed"] == [J1]
    assert list(file_content()) == [J2, "latest"]


def test_the_path_is_told(tmp_path: Path) -> None:
    assert run_script("registry", "path").document["path"] == os.environ["TAO_INF_MS_STATE_FILE"]
    elsewhere = {"TAO_INF_MS_STATE_FILE": str(tmp_path / "with space" / "r.json")}
    assert run_script("registry", "path", env=elsewhere).document["path"] == elsewhere["TAO_INF_MS_STATE_FILE"]


def test_no_command_is_a_usage_error_with_the_way_to_help() -> None:
    error = run_script("registry", expect=2).document["error"]
    assert error["type"] == "usage"
    assert "--help" in error["fix"]


def test_a_person_sees_a_table() -> None:
    write(J1)
    write(J2, url="http://localhost:8081")
    shown = at_a_terminal("list", "--offline")
    line = next(line for line in shown.splitlines() if J2 in line)
    assert line.lstrip().startswith("*"), "the latest is not marked"
    assert "running" in line and "http://localhost:8081" in line and "cosmos-rl" in line
    assert at_a_terminal("path").strip() == os.environ["TAO_INF_MS_STATE_FILE"]
    assert json.loads(at_a_terminal("list", "--json"))["latest"] == J2


def at_a_terminal(*arguments: str) -> str:
    """What the script prints to a terminal of 160 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "160", "TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, str(SCRIPTS / "registry.py"), *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the last writer has gone.
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0, text
    return text.decode()

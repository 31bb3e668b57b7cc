"""start_service.py --launch-spec: what build_payload.py printed is taken back, and nothing that was changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import Result, run_script

WANTED = ("--network-arch", "cosmos-rl", "--model-path", "hf_model://a/b", "--platform", "local-docker")


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    document: dict[str, Any] = run_script("build_payload", *WANTED, "--shm-size", "4g").document
    return document


def dry_run(spec: Any, *arguments: str, expect: int = 0) -> Result:
    text = spec if isinstance(spec, str) else json.dumps(spec)
    return run_script("start_service", "--launch-spec", "-", "--dry-run", *arguments, stdin=text, expect=expect)


def test_a_launch_spec_is_taken_from_standard_input_and_from_a_file(spec: dict[str, Any], tmp_path: Path) -> None:
    assert dry_run(spec).document["job_id"] == spec["job_id"]
    file = tmp_path / "a spec.json"
    file.write_text(json.dumps(spec))
    document = run_script("start_service", "--launch-spec", str(file), "--dry-run").document
    assert document["job_id"] == spec["job_id"]
    assert spec["command"] in json.dumps(document["would_create"], ensure_ascii=False) or json.dumps(spec["command"])[
        1:-1
    ] in json.dumps(document["would_create"])


def test_the_platforms_options_and_the_port_may_be_chosen_anew(spec: dict[str, Any]) -> None:
    arguments = ("--platform", "local-docker", "--shm-size", "2g", "--host-port", "9123")
    shown = json.dumps(dry_run(spec, *arguments).document["would_create"])
    assert "9123" in shown
    assert str(2 * 2**30) in shown or "2g" in shown


@pytest.mark.parametrize(
    "option",
    [WANTED[:2], WANTED[2:4], ("--num-gpus", "2"), ("--spec", "a=b"), ("--env", "JOB_ID=1"), ("--mount", "/tmp")],
)
def test_what_the_spec_says_already_cannot_be_said_again(spec: dict[str, Any], option: tuple[str, str]) -> None:
    error = dry_run(spec, *option, expect=2).document["error"]
    assert error["type"] == "launch_spec_and_options"
    assert option[0] in error["message"]


def test_another_platform_than_the_specs_is_refused(spec: dict[str, Any]) -> None:
    error = dry_run(spec, "--platform", "local-process", expect=2).document["error"]
    assert error["type"] == "launch_spec_for_other_platform"


@pytest.mark.parametrize(
    ("change", "type_"),
    [
        ({"command": "umask 0 && id"}, "command_changed"),
        ({"command": "id"}, "schema_broken"),
        ({"env": {"HF_TOKEN": "x"}}, "env_set_by_us"),
        ({"secret_env": ["NGC_KEY"]}, "unknown_secret"),
        ({"surprise": 1}, "schema_broken"),
        ({"job_id": "../x"}, "schema_broken"),
        ({"host_port": 0}, "schema_broken"),
        ({"platform_options": {"privileged": True}}, "unknown_platform_option"),
        ({"platform_options": {"shm-size": 4}}, "bad_platform_option"),
        ({"platform_options": {"gpu-mode": "fast"}}, "bad_platform_option"),
    ],
)
def test_a_spec_that_was_changed_is_bad_input(spec: dict[str, Any], change: dict[str, Any], type_: str) -> None:
    assert dry_run({**spec, **change}, expect=2).document["error"]["type"] == type_


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"a":' * 100_000])
def test_what_is_no_launch_spec_is_bad_input(text: str) -> None:
    assert dry_run(text, expect=2).document["error"]["fix"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    arguments = ("--launch-spec", str(tmp_path / "nothing"), "--dry-run")
    assert "nothing" in run_script("start_service", *arguments, expect=2).document["error"]["message"]


def test_a_dry_run_needs_no_secret_to_be_set() -> None:
    result = run_script("start_service", *WANTED, "--env", "WANDB_API_KEY", "--dry-run")
    assert result.document["secret_env"] == ["WANDB_API_KEY"]

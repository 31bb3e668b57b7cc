"""build_payload.py as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import SCRIPTS, run_script

HF = "hf_model://nvidia/model"
COSMOS = ("--network-arch", "cosmos-rl", "--model-path", HF, "--platform", "local-docker")


def error_of(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    error: dict[str, Any] = run_script("build_payload", *arguments, expect=2, env=env).document["error"]
    return error


def test_it_prints_the_launch_spec() -> None:
    document = run_script("build_payload", *COSMOS, "--env", "WANDB_PROJECT=p", "--host-port", "9000").document
    assert document["command"].startswith("umask 0 && cosmos-rl-inference-microservice --job ")
    assert document["env"]["WANDB_PROJECT"] == "p"
    assert document["host_port"] == 9000


def test_what_is_missing_is_asked_for_in_one_round() -> None:
    needs = run_script("build_payload", expect=3).document["needs"]
    assert [need["name"] for need in needs] == ["network_arch", "model_path", "platform"]
    assert {"platform": "local-docker"} in needs[2]["options"]
    assert "smollm2" in {option["network_arch"] for option in needs[0]["options"]}


def test_the_model_is_asked_for_in_the_archs_own_forms() -> None:
    needs = run_script("build_payload", "--network-arch", "smollm2", "--platform", "local-docker", expect=3).document[
        "needs"
    ]
    assert "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct" in needs[0]["question"]


def test_the_registered_key_is_the_users_to_decide() -> None:
    arguments = ("--network-arch", "cosmos-predict2.5", "--model-path", HF, "--platform", "local-docker")
    needs = run_script("build_payload", *arguments, expect=3).document["needs"]
    assert needs[0]["answer_with"] == "--spec model=KEY"
    assert " --model base-2b " in run_script("build_payload", *arguments, "--spec", "model=base-2b").document["command"]


def test_no_secret_is_in_anything_it_prints() -> None:
    planted = {"HF_TOKEN": "planted-hf-3f2a", "WANDB_API_KEY": "planted-wandb-9c1b", "NGC_API_KEY": "planted-ngc-77aa"}
    good = run_script("build_payload", *COSMOS, "--env", "WANDB_API_KEY", env=planted)
    assert good.document["secret_env"] == ["HF_TOKEN", "WANDB_API_KEY"]
    results = [good]
    for arguments in (
        ("--env", "HF_TOKEN=planted-hf-3f2a"),
        ("--env", "planted-hf-3f2a"),
        ("--env", "JOB_ID=planted-hf-3f2a"),
        ("--num-gpus", "planted-hf-3f2a"),
        ("--mount", "/planted-hf-3f2a"),
        ("--spec", "planted-hf-3f2a"),
        ("--hf-token", "planted-hf-3f2a"),
        ("--host-port", "planted-ngc-77aa"),
    ):
        results.append(run_script("build_payload", *COSMOS, *arguments, expect=2, env=planted))
    for result in results:
        assert "planted" not in result.stdout + result.stderr


def test_a_secrets_value_that_the_environment_does_not_have_is_not_repeated_either() -> None:
    for arguments in (
        ("--env", "HF_TOKEN=planted-3f2a"),
        ("--evn", "HF_TOKEN=planted-3f2a"),
        ("--env", "planted-3f2a"),
    ):
        result = run_script("build_payload", *COSMOS, *arguments, expect=2)
        assert "planted" not in result.stdout + result.stderr


def test_a_secret_that_is_named_has_to_be_set() -> None:
    error = error_of(*COSMOS, "--env", "WANDB_API_KEY")
    assert error["fix"].startswith("export WANDB_API_KEY=")


@pytest.mark.parametrize(
    ("arguments", "type_"),
    [
        (("--network-arch", "cosmos", "--model-path", HF, "--platform", "local-docker"), "unknown_network_arch"),
        (("--network-arch", "cosmos-rl", "--model-path", HF, "--platform", "docker"), "unknown_platform"),
        (
            ("--network-arch", "cosmos-rl", "--model-path", "s3://a/b", "--platform", "local-docker"),
            "refused_model_path",
        ),
        ((*COSMOS, "--num-gpus", "0"), "bad_num_gpus"),
        ((*COSMOS, "--num-gpus", "two"), "usage"),
        ((*COSMOS, "--host-port", "70000"), "bad_host_port"),
        ((*COSMOS, "--mount", "data"), "bad_mount"),
        ((*COSMOS, "--spec", "a=b"), "unknown_spec"),
        ((*COSMOS, "--gpu-mode", "fast"), "usage"),
        ((*COSMOS, "--unknown"), "usage"),
        ((*COSMOS, "--platform"), "usage"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(arguments: tuple[str, ...], type_: str) -> None:
    error = error_of(*arguments)
    assert error["type"] == type_
    assert error["fix"]


def test_a_path_that_is_not_on_this_machine_is_noted() -> None:
    result = run_script("build_payload", *COSMOS[:3], "/opt/nothing-6d1f", *COSMOS[4:])
    assert "has to be in the image" in result.stderr


def test_only_the_platform_options_that_were_given_are_in_the_spec() -> None:
    assert run_script("build_payload", *COSMOS).document["platform_options"] == {}
    given = run_script("build_payload", *COSMOS, "--shm-size", "4g").document["platform_options"]
    assert given == {"shm-size": "4g"}


def help_of(*arguments: str) -> str:
    return run_script("build_payload", *arguments, "--help").stdout


def test_help_shows_the_options_of_the_platform_that_is_named() -> None:
    assert "--shm-size" not in help_of()
    assert "--platform P --help" in help_of()
    assert "--shm-size" in help_of("--platform", "local-docker")
    assert "--shm-size" in help_of("--platform=local-docker")
    assert "--shm-size" not in help_of("--platform", "nothing")


def test_help_reads_no_reference_file_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['build_payload.py', '--platform', 'local-docker', '--help']\n"
        "import runpy\n"
        "try: runpy.run_path(sys.path[0] + '/build_payload.py', run_name='__main__')\n"
        "finally: print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    for heavy in ("yaml", "jsonschema", "requests", "docker", "rich", "psutil"):
        assert f"'{heavy}'" not in done.stderr


def test_on_a_terminal_the_command_has_a_line_of_its_own() -> None:
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(SCRIPTS / "build_payload.py"), *COSMOS], stdout=its, stderr=its, stdin=subprocess.DEVNULL
    ):
        os.close(its)
        shown = read_all(ours)
    assert [line for line in shown.splitlines() if line.startswith("umask 0 && cosmos-rl")]
    assert "{" not in shown.split("umask 0")[0].splitlines()[0]


def read_all(descriptor: int) -> str:
    chunks = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end is closed.
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(descriptor)
    return b"".join(chunks).decode()


def test_the_bundle_works_from_a_path_with_spaces_and_any_working_directory(tmp_path: Path) -> None:
    skill = tmp_path / "my skills" / "tao"
    for folder in ("scripts", "references", "platform"):
        shutil.copytree(SCRIPTS.parent / folder, skill / folder)
    shutil.copy2(SCRIPTS.parent / "versions.yaml", skill)
    done = subprocess.run(
        [sys.executable, str(skill / "scripts" / "build_payload.py"), *COSMOS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["network_arch"] == "cosmos-rl"

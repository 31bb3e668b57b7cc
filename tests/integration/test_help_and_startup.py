"""Every script starts fast, says how it is used, refuses nonsense, and runs from anywhere under any folder's name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import SCRIPTS, SKILL, check_output, run_script

ALL = sorted(file.stem for file in SCRIPTS.glob("*.py"))
HEAVY = (
    "docker",
    "flask",
    "jsonschema",
    "kubernetes",
    "leptonai",
    "requests",
    "rich",
    "sqlite3",
    "tenacity",
    "xllamacpp",
)
# What --help must name, from the list of options that agents rely on.
PROMISED = {
    "build_payload": ["--network-arch", "--model-path", "--platform", "--num-gpus", "--spec", "--env"],
    "start_service": [
        "--network-arch",
        "--launch-spec",
        "--no-wait",
        "--timeout",
        "--host-port",
        "--dry-run",
        "--max-hours",
    ],
    "wait_ready": ["--job-id", "--network-arch", "--timeout", "--events"],
    "request_parameters": ["--job-id", "--network-arch"],
    "send_request": [
        *("--job-id", "--network-arch", "--prompt", "--system", "--image", "--video", "--set", "--accept-default"),
        *("--accept-defaults", "--output", "--stream", "--dry-run", "--caller"),
    ],
    "stop_service": ["--job-id", "--all", "--yes", "--expired", "--idle"],
    "registry": ["list", "show", "write", "remove", "reconcile", "path"],
    "service_logs": ["--job-id", "--tail", "--follow"],
    "callers": ["add", "list", "rotate", "disable", "enable", "remove", "limits"],
    "usage_report": ["--by", "--since", "--format"],
}
SUBCOMMAND_OPTIONS = {
    ("registry", "reconcile"): ["--remove-gone"],
    ("registry", "list"): ["--offline"],
    ("callers", "rotate"): ["--grace", "--database"],
}

# Runs a script's --help in this process's place and says which modules it took.
IMPORTS_OF_HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as done:
    assert not done.code, done.code
print("\\n".join(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("script", ALL)
def test_help_names_what_the_script_takes(script: str) -> None:
    done = run_script(script, "--help")
    assert done.stderr == ""
    for option in (*PROMISED.get(script, []), "--json"):
        assert option in done.stdout, option


@pytest.mark.parametrize("command", SUBCOMMAND_OPTIONS, ids=" ".join)
def test_help_of_a_subcommand_names_its_options(command: tuple[str, str]) -> None:
    script, subcommand = command
    written = run_script(script, subcommand, "--help").stdout
    assert all(option in written for option in SUBCOMMAND_OPTIONS[command])


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("script", ALL)
def test_help_imports_nothing_heavy(script: str) -> None:
    command = [sys.executable, "-c", IMPORTS_OF_HELP, str(SCRIPTS / f"{script}.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=SCRIPTS, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    )
    assert done.returncode == 0, done.stderr
    assert set(HEAVY) & set(done.stderr.split()) == set()


@pytest.mark.parametrize("script", ALL)
def test_an_option_that_does_not_exist_is_bad_input(script: str) -> None:
    done = run_script(script, "--no-such-option", expect=2)
    assert done.document["error"]["type"] == "usage"
    assert done.document["error"]["message"]


@pytest.mark.parametrize("script", ALL)
def test_a_script_works_from_another_directory(script: str, tmp_path: Path) -> None:
    # A folder that could mislead: its modules have the names of ours and of the standard library's.
    (tmp_path / "platform").mkdir()
    (tmp_path / "inference_service.py").write_text("raise SystemExit('the wrong module')")
    assert script in run_script(script, "--help", cwd=tmp_path).stdout


def test_a_copy_in_a_folder_with_spaces_and_no_git_works(tmp_path: Path) -> None:
    copy = tmp_path / "my skills" / "a copy's name"
    ignored = shutil.ignore_patterns("__pycache__", "tests", ".*")
    for folder in ("scripts", "references", "platform"):
        shutil.copytree(SKILL / folder, copy / folder, ignore=ignored)
    shutil.copyfile(SKILL / "versions.yaml", copy / "versions.yaml")
    for script in ALL:
        done = subprocess.run(
            [sys.executable, str(copy / "scripts" / f"{script}.py"), "--help"], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), script
    done = subprocess.run([sys.executable, str(copy / "scripts" / "usage_report.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_output("usage_report", 0, json.loads(done.stdout))

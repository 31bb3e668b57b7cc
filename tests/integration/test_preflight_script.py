"""preflight.py as a user runs it: one platform, all platforms, and what a failed check says."""

from __future__ import annotations

import os
import subprocess
import sys

from support import SCRIPTS, run_script

NO_DAEMON = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def test_all_platforms_are_listed_and_what_one_lacks_is_no_error() -> None:
    platforms = {each["platform"]: each for each in run_script("preflight", env=NO_DAEMON).document["platforms"]}
    assert {"local-docker", "local-process"} <= set(platforms)
    assert platforms["local-docker"]["ok"] is False
    (failed,) = [check for check in platforms["local-docker"]["checks"] if not check["ok"]]
    assert "docker" in failed["fix"]


def test_a_platform_that_lacks_something_is_an_error_with_the_first_fix_and_all_checks() -> None:
    error = run_script("preflight", "--platform", "local-docker", env=NO_DAEMON, expect=1).document["error"]
    assert error["type"] == "preflight_failed"
    assert error["platform"] == "local-docker"
    failed = [check for check in error["checks"] if not check["ok"]]
    assert error["fix"] == failed[0]["fix"] != ""
    assert all(check["name"] in error["message"] for check in failed)


def test_an_unknown_platform_is_bad_input_that_lists_those_there_are() -> None:
    error = run_script("preflight", "--platform", "mainframe", expect=2).document["error"]
    assert "local-docker" in error["message"]


def test_a_planted_key_is_not_printed() -> None:
    done = run_script("preflight", env={"NGC_KEY": "nvapi-planted-key", "HF_TOKEN": "hf_planted_token"})
    assert "planted" not in done.stdout + done.stderr


def test_a_reader_that_goes_away_before_an_error_is_printed_gets_no_traceback() -> None:
    script = [sys.executable, str(SCRIPTS / "preflight.py"), "--platform", "local-docker"]
    process = subprocess.Popen(
        script, env={**os.environ, **NO_DAEMON}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1

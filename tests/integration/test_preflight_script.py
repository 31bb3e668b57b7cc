"""preflight.py as a user runs it: one platform, all platforms, and what a failed check says."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from doubles.fake_driver import FakeDriver
from support import SCRIPTS, check_output, run_script

import preflight
from inference_service import platforms
from inference_service.contracts import Check
from inference_service.errors import ToolError

NO_DAEMON = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def test_all_platforms_are_listed_and_what_one_lacks_is_no_error() -> None:
    found = {each["platform"]: each for each in run_script("preflight", env=NO_DAEMON).document["platforms"]}
    assert {"local-docker", "local-process"} <= set(found)
    assert found["local-docker"]["ok"] is False
    (failed,) = [check for check in found["local-docker"]["checks"] if not check["ok"]]
    assert "docker" in failed["fix"]


def test_a_platform_that_lacks_something_is_an_error_with_the_first_fix_and_all_checks() -> None:
    error = run_script("preflight", "--platform", "local-docker", env=NO_DAEMON, expect=1).document["error"]
    assert error["type"] == "preflight_failed"
    assert error["platform"] == "local-docker"
    failed = [check for check in error["checks"] if not check["ok"]]
    assert error["fix"] == failed[0]["fix"] != ""
    assert all(check["name"] in error["message"] for check in failed)


@pytest.fixture
def platform_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], list[Check]]], None]:
    """Adds a platform whose checks are the given ones."""
    load = platforms.load

    def add(checks: Callable[[], list[Check]]) -> None:
        driver = FakeDriver()
        monkeypatch.setattr(driver, "preflight", checks)
        monkeypatch.setattr(platforms, "names", lambda: ["fake", "local-process"])
        monkeypatch.setattr(platforms, "load", lambda name: driver if name == "fake" else load(name))

    return add


def table() -> dict[str, dict[str, Any]]:
    document = preflight.main(argparse.Namespace(platform="all"))
    check_output("preflight", 0, document)
    return {each["platform"]: each for each in document["platforms"]}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("a fault of its own"), "RuntimeError: a fault of its own"),
        (KeyError("x"), "KeyError"),
        (ToolError("no_client", "its client is missing"), "its client is missing"),
    ],
)
def test_a_platform_whose_checks_fail_does_not_hide_the_others(
    error: Exception, told: str, platform_that: Callable[[Callable[[], list[Check]]], None]
) -> None:
    def fail() -> list[Check]:
        raise error

    platform_that(fail)
    found = table()
    (check,) = found["fake"]["checks"]
    assert (check["ok"], told in check["found"]) == (False, True)
    assert found["local-process"]["checks"]
    with pytest.raises(ToolError) as failed:
        preflight.main(argparse.Namespace(platform="fake"))
    assert told in failed.value.message


def test_a_platform_that_does_not_answer_is_waited_for_no_longer_than_said(
    platform_that: Callable[[Callable[[], list[Check]]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()

    def hang() -> list[Check]:
        never.wait(60)
        return []

    platform_that(hang)
    monkeypatch.setattr(preflight, "PATIENCE_SECONDS", 2.0)
    began = time.monotonic()
    found = table()
    never.set()
    assert time.monotonic() - began < 10
    (check,) = found["fake"]["checks"]
    assert "longer than 2 s" in check["found"]
    assert "--platform fake" in check["fix"]
    assert found["local-process"]["ok"] in (True, False)


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

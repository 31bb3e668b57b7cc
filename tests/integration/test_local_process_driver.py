"""The local-process driver with real processes: what it starts, finds again and ends, and what it leaves alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from support import SCRIPTS, eventually

from inference_service import paths, platforms
from inference_service.contracts import Driver, LaunchSpec, ServiceEntry, StartedService, State
from inference_service.errors import BadInput, PortTaken, ToolError

HTTP_SERVER = "umask 0 && python3 -m http.server $TAO_INF_MS_PORT --bind $TAO_INF_MS_HOST"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spec_of(command: str, **fields: Any) -> LaunchSpec:
    spec = LaunchSpec(
        job_id=str(uuid.uuid4()),
        network_arch="smollm2",
        platform="local-process",
        model_path="hf_model://HuggingFaceTB/SmolLM2-135M-Instruct",
        image="",
        command=command,
        env={},
        secret_env=(),
        num_gpus=0,
        container_port=8080,
        host_port=free_port(),
    )
    return dataclasses.replace(spec, **fields)


def entry_of(started: StartedService) -> ServiceEntry:
    return ServiceEntry(
        job_id=started.job_id,
        network_arch=started.network_arch,
        platform=started.platform,
        host_url=started.host_url,
        host_port=started.host_port,
        extras=json.loads(json.dumps(dict(started.extras))),
    )


@pytest.fixture
def driver(own_state: None) -> Iterator[Driver]:
    """The driver; what a test left of its own services is ended."""
    driver = platforms.load("local-process")
    yield driver
    for started in driver.discover():
        driver.stop(entry_of(started))
    assert driver.discover() == []


def start(driver: Driver, spec: LaunchSpec) -> ServiceEntry:
    return entry_of(driver.start(spec, lambda progress: None))


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_service_is_started_on_its_port_found_again_and_stopped_without_a_trace(driver: Driver) -> None:
    spec = spec_of(HTTP_SERVER)
    entry = start(driver, spec)
    assert entry.host_url == f"http://127.0.0.1:{spec.host_port}"
    eventually(lambda: _answers(entry.host_url))
    assert driver.status(entry).state is State.RUNNING
    (found,) = driver.discover()
    assert (found.job_id, found.host_url, found.host_port) == (entry.job_id, entry.host_url, entry.host_port)
    assert found.extras["pid"] == entry.extras["pid"]
    assert found.stop_after is None

    folder = paths.state_directory() / "processes" / entry.job_id
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "log").stat().st_mode) == 0o600

    driver.stop(entry)
    assert not runs(entry.extras["pid"])
    assert driver.discover() == []
    assert not folder.exists()
    assert driver.status(entry).dead
    driver.stop(entry)  # Already gone is success.


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(url, timeout=5).ok
    return False


def test_a_service_has_a_session_of_its_own_no_terminal_and_only_the_environment_it_was_given(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-services")
    monkeypatch.setenv("WANDB_API_KEY", "wandb-not-asked-for")
    entry = start(driver, spec_of("exec sleep 300", env={"CLOUD_BASED": "False"}, secret_env=("HF_TOKEN",)))
    process = psutil.Process(entry.extras["pid"])
    eventually(lambda: process.name() == "sleep")
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert Path(f"/proc/{process.pid}/fd/0").readlink() == Path(os.devnull)
    environ = process.environ()
    assert environ["HF_TOKEN"] == "hf_abcdefghijkl"
    assert environ["CLOUD_BASED"] == "False"
    assert environ["TAO_INF_MS_HOST"] == "127.0.0.1"
    assert environ["TAO_INF_MS_PORT"] == str(entry.host_port)
    assert environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environ["PYTHONPATH"] == str(SCRIPTS)
    assert "AWS_SECRET_ACCESS_KEY" not in environ
    assert "WANDB_API_KEY" not in environ


def test_a_secret_is_in_no_command_line_in_no_registry_field_and_not_in_a_dry_run(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_in_the_test")
    spec = spec_of("sleep 300", secret_env=("HF_TOKEN",))
    dry = driver.dry_run(spec)
    assert "HF_TOKEN" in dry["env_names"]
    started = driver.start(spec, lambda progress: None)
    told = json.dumps([dict(dry), dataclasses.asdict(started), dataclasses.asdict(driver.discover()[0])], default=dict)
    assert "hf_planted_in_the_test" not in told
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert b"hf_planted_in_the_test" not in file.read_bytes()


def test_a_secret_that_is_not_set_is_refused_before_anything_starts(driver: Driver) -> None:
    with pytest.raises(BadInput, match="HF_TOKEN"):
        start(driver, spec_of("sleep 300", secret_env=("HF_TOKEN",)))
    assert driver.discover() == []


def test_what_ignores_term_is_killed_and_so_are_its_grandchildren(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[type(driver).__module__], "_PATIENCE_SECONDS", 0.5)
    deaf = "trap '' TERM; (trap '' TERM; setsid sleep 301 & sleep 302) & sleep 303; sleep 304"
    entry = start(driver, spec_of(deaf))
    mine = eventually(lambda: pids if len(pids := _pids_of(entry.job_id)) >= 5 else None)
    driver.stop(entry)
    assert [pid for pid in mine if runs(pid)] == []
    assert _pids_of(entry.job_id) == []


def test_a_child_that_cleared_its_environment_is_ended_with_its_session(driver: Driver) -> None:
    entry = start(driver, spec_of("env -i sleep 305 & sleep 306"))
    session = entry.extras["pid"]

    def hidden() -> int | None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.cmdline() == ["sleep", "305"] and os.getsid(process.pid) == session:
                    return process.pid
        return None

    pid = eventually(hidden)
    driver.stop(entry)
    assert not runs(pid)


def _pids_of(job_id: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TAO_JOB_ID") == job_id:
                found.append(process.pid)
    return found


def test_a_pid_that_now_belongs_to_a_stranger_is_neither_taken_for_the_service_nor_ended(driver: Driver) -> None:
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        later = psutil.Process(stranger.pid).create_time() + 3600
        for extras in (
            {"pid": stranger.pid, "pid_started": later},
            {"pid": stranger.pid},
            {"pid": -1, "pid_started": 0},
            {},
        ):
            entry = ServiceEntry("a-job", "smollm2", "local-process", "http://127.0.0.1:1", extras=extras)
            assert driver.status(entry).dead
            driver.stop(entry)
            assert stranger.poll() is None
        # Even a registry that names the stranger exactly, pid and start time, does not have it ended.
        exact = {"pid": stranger.pid, "pid_started": psutil.Process(stranger.pid).create_time()}
        driver.stop(ServiceEntry("a-job", "smollm2", "local-process", "http://127.0.0.1:1", extras=exact))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_job_id_that_leads_out_of_the_state_directory_is_refused(driver: Driver, tmp_path: Path) -> None:
    precious = tmp_path / "state" / "precious"
    precious.mkdir()
    entry = ServiceEntry("../../precious", "smollm2", "local-process", "http://127.0.0.1:1")
    with pytest.raises(BadInput, match="plain name"):
        driver.stop(entry)
    assert precious.exists()


def test_a_service_survives_the_death_of_its_starter_and_its_terminal_signals(driver: Driver, tmp_path: Path) -> None:
    spec = spec_of("exec sleep 307")
    starter = _starter(spec, tmp_path)
    (found,) = eventually(driver.discover)
    os.killpg(starter.pid, signal.SIGINT)
    os.killpg(starter.pid, signal.SIGHUP)
    starter.kill()
    starter.wait()
    assert runs(found.extras["pid"])
    assert driver.status(entry_of(found)).state is State.RUNNING
    driver.stop(entry_of(found))
    assert not runs(found.extras["pid"])


def _starter(spec: LaunchSpec, tmp_path: Path, then: str = "time.sleep(60)") -> subprocess.Popen[bytes]:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec.to_json()))
    program = f"""
import json, sys, time
from inference_service import platforms
from inference_service.contracts import LaunchSpec
spec = LaunchSpec.from_json(json.load(open(sys.argv[1])))
platforms.load("local-process").start(spec, lambda progress: None)
{then}
"""
    return subprocess.Popen(
        [sys.executable, "-c", program, str(file)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.5])
def test_a_starter_killed_at_any_moment_leaves_nothing_that_cannot_be_found(
    driver: Driver, tmp_path: Path, delay: float
) -> None:
    spec = spec_of("exec sleep 308")
    starter = _starter(spec, tmp_path)
    time.sleep(delay)  # The point of its life at which it is killed.
    starter.kill()
    starter.wait()
    # What it forked last becomes the service a moment later.
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and not driver.discover():
        time.sleep(0.05)
    assert {found.job_id for found in driver.discover()} == {spec.job_id} & set(_jobs_running())


def _jobs_running() -> list[str]:
    jobs = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            jobs.append(process.environ().get("TAO_JOB_ID", ""))
    return jobs


def test_a_start_that_is_interrupted_leaves_no_process_and_no_folder(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[int] = []

    class InterruptedPopen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            spawned.append(self.pid)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    spec = spec_of("sleep 309")
    with pytest.raises(KeyboardInterrupt):
        start(driver, spec)
    assert [pid for pid in spawned if runs(pid)] == []
    assert not (paths.state_directory() / "processes" / spec.job_id).exists()


def test_a_job_id_that_runs_already_is_refused_and_the_running_service_left_alone(driver: Driver) -> None:
    spec = spec_of("sleep 310")
    entry = start(driver, spec)
    with pytest.raises(BadInput, match="runs already"):
        start(driver, dataclasses.replace(spec, host_port=free_port()))
    assert driver.status(entry).state is State.RUNNING


def test_a_port_that_a_stranger_took_is_reported_as_taken(driver: Driver) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(PortTaken):
            start(driver, spec_of(HTTP_SERVER, host_port=stranger.getsockname()[1]))
    assert driver.discover() == []


def test_how_a_child_of_ours_ended_is_told(driver: Driver) -> None:
    entry = start(driver, spec_of("exit 3"))
    status = eventually(lambda: found if (found := driver.status(entry)).dead else None)
    assert status.state is State.FAILED
    assert "status 3" in status.reason
    driver.stop(entry)
    entry = start(driver, spec_of("kill -9 $$"))
    assert "signal 9" in eventually(lambda: found.reason if (found := driver.status(entry)).dead else None)
    driver.stop(entry)


def test_the_log_is_read_from_its_end_and_followed_until_the_service_ends(driver: Driver) -> None:
    entry = start(driver, spec_of("printf 'one\\ntwo\\n'; echo three >&2; printf 'no newline'"))
    eventually(lambda: driver.status(entry).dead)
    assert list(driver.logs(entry, None, False)) == ["one", "two", "three", "no newline"]
    assert list(driver.logs(entry, 2, False)) == ["three", "no newline"]
    driver.stop(entry)
    slow = start(driver, spec_of("for i in 1 2 3; do echo line $i; sleep 0.2; done"))
    assert list(driver.logs(slow, None, True)) == ["line 1", "line 2", "line 3"]
    driver.stop(slow)
    with pytest.raises(ToolError, match="no log"):
        list(driver.logs(slow, None, False))


def test_services_of_another_registry_are_not_discovered(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = start(driver, spec_of("sleep 311"))
    with monkeypatch.context() as other:
        other.setenv("TAO_INF_MS_STATE_FILE", "/tmp/of-another-test.json")
        assert driver.discover() == []
    assert [found.job_id for found in driver.discover()] == [entry.job_id]


def test_what_this_platform_cannot_run_is_refused_with_the_way_out(driver: Driver) -> None:
    with pytest.raises(BadInput) as refused:
        driver.check(spec_of("true", network_arch="cosmos-rl"))
    assert refused.value.type == "arch_needs_container"
    assert "local-docker" in refused.value.fix
    with pytest.raises(BadInput) as refused:
        driver.check(spec_of("true", model_path="/nowhere/model.gguf"))
    assert "/nowhere/model.gguf" in refused.value.message


def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    gone = ("xllamacpp", "uvicorn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    with pytest.raises(BadInput) as refused:
        driver.check(spec_of("true"))
    assert refused.value.type == "arch_not_installed"
    assert "[local]" in refused.value.fix
    (archs,) = [check for check in driver.preflight() if check.name == "network archs"]
    assert not archs.ok
    assert archs.fix


def test_preflight_tells_what_can_run_here(driver: Driver) -> None:
    checks = {check.name: check for check in driver.preflight()}
    assert checks["bash"].ok
    assert "smollm2" in checks["network archs"].found
    assert all(check.ok or check.fix for check in checks.values())

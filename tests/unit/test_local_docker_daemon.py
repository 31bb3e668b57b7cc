"""Which daemon, what reaches its ports, what its containers are; and the preflight's judgement of what it finds."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import local_docker_daemon as daemon
import local_docker_preflight as preflight
import pytest
from docker_engine import launch_spec

from inference_service import docker_inspection as inspection
from inference_service import paths, platforms
from inference_service.contracts import State
from inference_service.errors import BadInput, ToolError

JOB = "0b8f7a3e-5a0c-4a52-9d0a-3a1f8c0f5b11"


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("unix:///var/run/docker.sock", True),
        ("npipe:////./pipe/docker_engine", True),
        ("tcp://localhost:2375", True),
        ("tcp://127.0.0.1:2375", True),
        ("tcp://gpu-box:2376", False),
        ("ssh://user@gpu-box", False),
        ("ssh://localhost", False),
    ],
)
def test_a_daemon_is_here_when_its_published_ports_are(address: str, here: bool) -> None:
    assert daemon.is_on_this_machine(address) is here


@pytest.mark.parametrize(
    ("address", "bind_address", "host"),
    [
        ("unix:///x", "127.0.0.1", "localhost"),
        ("unix:///x", "0.0.0.0", "localhost"),
        ("unix:///x", "10.0.0.5", "10.0.0.5"),
        ("unix:///x", "fd00::5", "[fd00::5]"),
        ("tcp://gpu-box:2376", "0.0.0.0", "gpu-box"),
        ("tcp://[fd00::9]:2376", "::", "[fd00::9]"),
        ("tcp://gpu-box:2376", "10.0.0.5", "10.0.0.5"),
    ],
)
def test_a_services_host_is_what_reaches_its_port_from_here(address: str, bind_address: str, host: str) -> None:
    assert daemon.service_host(address, bind_address) == host


def test_an_ssh_alias_is_resolved_by_ssh_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\n[ "$1 $2 $3" = "-G -- alias" ] && printf "user u\\nhostname 10.1.2.3\\n"\n')
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert daemon.service_host("ssh://me@alias", "0.0.0.0") == "10.1.2.3"


def test_a_loopback_port_of_another_machine_is_refused_with_the_option_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://gpu-box")
    driver = platforms.load("local-docker")
    with pytest.raises(BadInput) as refused:
        driver.check(launch_spec())
    assert refused.value.type == "port_unreachable"
    assert "--bind-address" in refused.value.fix
    driver.check(launch_spec(platform_options={"bind-address": "0.0.0.0"}))


def test_a_missing_docker_package_is_an_error_that_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(ToolError) as missing:
        daemon.package()
    assert missing.value.type == "missing_dependency"
    assert missing.value.fix == 'pip install "docker>=7.1"'
    assert [check.fix for check in preflight.checks()] == ['pip install "docker>=7.1"']


def test_a_daemon_that_does_not_run_is_unknown_to_status_and_an_error_to_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("docker")
    from docker_engine import entry_of

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    driver = platforms.load("local-docker")
    status = driver.status(entry_of(launch_spec()))
    assert status.state is State.UNKNOWN
    assert f"{tmp_path}/none.sock" in status.reason
    for ask in (driver.discover, lambda: driver.stop(entry_of(launch_spec()))):
        with pytest.raises(ToolError) as unreachable:
            ask()
        assert unreachable.value.type == "docker_unreachable"
        assert "systemctl start docker" in unreachable.value.fix


def test_a_socket_that_this_user_may_not_open_says_which_group_to_join() -> None:
    error = daemon.connection_error(
        OSError("('Connection aborted.', PermissionError(13, 'Permission denied'))"), "unix:///x"
    )
    assert error.type == "docker_permission_denied"
    assert "usermod -aG docker" in error.fix


def test_a_daemon_that_answers_wrongly_is_quoted_and_not_taken_for_stopped() -> None:
    broken = daemon.connection_error(ValueError("not enough values to unpack"), "unix:///x")
    assert "not enough values" in broken.message
    assert broken.fix == "DOCKER_HOST=unix:///x docker info"
    elsewhere = daemon.connection_error(OSError("Connection refused"), "tcp://box:2376")
    assert elsewhere.fix == "DOCKER_HOST=tcp://box:2376 docker info"


def test_the_current_docker_context_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    import hashlib
    import json

    meta = tmp_path / "contexts" / "meta" / hashlib.sha256(b"desk").hexdigest()
    meta.mkdir(parents=True)
    context = {"Name": "desk", "Metadata": {}, "Endpoints": {"docker": {"Host": "unix:///desk.sock"}}}
    (meta / "meta.json").write_text(json.dumps(context))
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "desk"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert daemon.default_address({"HOME": str(tmp_path)}) == "unix:///desk.sock"
    assert daemon.default_address({"DOCKER_HOST": "tcp://x:1"}) == "tcp://x:1"
    with pytest.raises(ToolError, match="'nope' does not exist"):
        daemon.default_address({"DOCKER_CONTEXT": "nope"})


@pytest.mark.parametrize(
    ("state", "means", "reason"),
    [
        ({"Status": "running"}, State.RUNNING, ""),
        ({"Status": "paused"}, State.RUNNING, "paused"),
        ({"Status": "created"}, State.PENDING, "not started"),
        ({"Status": "exited", "ExitCode": 3}, State.EXITED, "exit code 3"),
        ({"Status": "exited", "ExitCode": 127, "Error": "no such file"}, State.EXITED, "no such file"),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, State.FAILED, "out of memory"),
        ({"Status": "dead"}, State.FAILED, "could not remove"),
        ({"Status": "removing"}, State.EXITED, "being removed"),
    ],
)
def test_a_containers_state_is_a_services_state(state: dict[str, Any], means: State, reason: str) -> None:
    status = inspection.status_of(state)
    assert status.state is means
    assert reason in status.reason


@pytest.mark.parametrize(
    ("name", "labels", "job_id", "ours"),
    [
        (JOB, {"tao-job-id": JOB}, JOB, True),
        (JOB, {}, JOB, True),
        (JOB, None, JOB, True),
        (JOB, {"tao-job-id": "another"}, JOB, False),
        ("web", {}, "web", False),
        ("web", {"tao-job-id": "web"}, "web", True),
        (f"{JOB}-db", {}, JOB, False),
    ],
)
def test_only_a_container_of_our_job_is_ours(name: str, labels: Any, job_id: str, ours: bool) -> None:
    assert inspection.is_ours({"Name": f"/{name}", "Config": {"Labels": labels}}, job_id) is ours


def test_gpus_without_a_toolkit_fail_the_check_and_no_gpus_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    gpu = ["GPU 0: NVIDIA L40S (UUID: GPU-1)"]
    here = "unix:///x"
    without_toolkit = preflight.gpus({"Runtimes": {"runc": {}}}, here, gpu)
    assert not without_toolkit.ok
    assert "nvidia-ctk" in without_toolkit.fix
    assert preflight.gpus({"Runtimes": {"nvidia": {}}}, here, gpu).ok
    assert preflight.gpus({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, here, gpu).ok
    none = preflight.gpus({}, here, [])
    assert none.ok
    assert "smollm2" in none.found


def test_a_registry_login_is_seen_by_name_alone() -> None:
    assert preflight.has_login({"auths": {"nvcr.io": {}}, "credsStore": "desktop"}, "nvcr.io")
    assert preflight.has_login({"credHelpers": {"nvcr.io": "ngc"}}, "nvcr.io")
    assert not preflight.has_login({"auths": {"docker.io": {}}}, "nvcr.io")


def test_the_registry_owner_marks_our_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_INF_MS_STATE_FILE", "/tmp/another.json")
    assert paths.registry_owner().endswith(":/tmp/another.json")

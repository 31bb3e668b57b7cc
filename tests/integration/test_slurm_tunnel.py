"""Which processes are a service's tunnel: those that carry its job_id, and no other, whatever their command line is."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_tunnel
from slurm_connection import Cluster
from support import SKILL, eventually

from inference_service import processes
from inference_service.contracts import ServiceEntry
from inference_service.errors import PortTaken, ToolError

JOB_ID = "5b3e0000-0000-4000-8000-000000000001"
FORWARD = "127.0.0.1:18080:n1:8080"


@contextlib.contextmanager
def process(mark: str | None = None, ignores_term: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a tunnel; with `mark` it carries that job_id."""
    program = f"{'trap : TERM; ' if ignores_term else ''}while :; do sleep 0.1; done"
    environ = {**os.environ, **({"TAO_INF_MS_TUNNEL": mark} if mark else {})}
    child = subprocess.Popen(["bash", "-c", program, "ssh", "-N", "-L", FORWARD], env=environ)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def entry(pid: int, started: float | None) -> ServiceEntry:
    extras = {"tunnel_pid": pid, "tunnel_started": started, "tunnel_login": "login1"}
    return ServiceEntry(JOB_ID, "smollm2", "slurm", "http://localhost:18080", host_port=18080, extras=extras)


def test_a_tunnel_is_found_by_its_mark_and_its_port() -> None:
    with process(JOB_ID) as tunnel:
        found = eventually(lambda: slurm_tunnel.find(JOB_ID, 18080))
        assert found.pid == tunnel.pid
        assert slurm_tunnel.find(JOB_ID, 18081) is None
        assert slurm_tunnel.find("another", 18080) is None


def test_the_end_of_a_tunnel_is_nobody_else_s_end() -> None:
    with process() as stranger, process("another-service") as other, process(JOB_ID) as tunnel:
        eventually(lambda: slurm_tunnel.find(JOB_ID, 18080))
        slurm_tunnel.close(JOB_ID)
        assert tunnel.wait(timeout=5) is not None
        assert stranger.poll() is None
        assert other.poll() is None


def test_a_tunnel_that_ignores_the_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_tunnel, "_PATIENCE_SECONDS", 0.3)
    with process(JOB_ID, ignores_term=True) as tunnel:
        eventually(lambda: slurm_tunnel.find(JOB_ID, 18080))
        slurm_tunnel.close(JOB_ID)
        assert tunnel.wait(timeout=5) == -9


def test_a_pid_that_was_used_again_is_no_tunnel() -> None:
    with process() as stranger:
        started = processes.started_at(stranger.pid)
        assert started is not None
        assert slurm_tunnel.of_entry(entry(stranger.pid, started)) is not None
        assert slurm_tunnel.of_entry(entry(stranger.pid, started - 3600)) is None
        assert slurm_tunnel.of_entry(entry(stranger.pid, None)) is None


def test_a_port_that_is_in_use_is_said_before_ssh_is_asked() -> None:
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortTaken):
            slurm_tunnel.open(Cluster(("login",)), None, JOB_ID, other.getsockname()[1], "n1", 8080)


def test_without_ssh_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolError) as missing:
        slurm_tunnel.open(Cluster(("login",)), None, JOB_ID, 18089, "n1", 8080)
    assert missing.value.type == "ssh_missing"
    assert "openssh-client" in missing.value.fix


def test_two_openers_do_not_meet(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import sys, time; sys.path[:0] = ['scripts', 'platform/slurm']; import slurm_tunnel\n"
        f"with slurm_tunnel.alone({JOB_ID!r}):\n"
        f"    print('in', file=open({str(log)!r}, 'a')); time.sleep(0.3); print('out', file=open({str(log)!r}, 'a'))"
    )
    children = [subprocess.Popen([sys.executable, "-c", program], cwd=SKILL) for _ in range(3)]
    assert [child.wait(timeout=20) for child in children] == [0, 0, 0]
    assert log.read_text().split() == ["in", "out"] * 3

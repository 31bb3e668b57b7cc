"""The ssh tunnel from a port of this machine to a service's node: opened, found again, ended.

`ssh -f` goes to the background once the port is bound and the login host has let us in, so that its exit status says
whether the tunnel is there. Its process carries the job_id in its environment: a tunnel whose start was killed before
anybody noted its pid is found all the same, and no process but ours is ever ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slurm_ssh
from slurm_connection import Cluster

from inference_service import paths, ports, processes
from inference_service.contracts import ServiceEntry
from inference_service.errors import PortTaken, ToolError

PID_FIELD, STARTED_FIELD, HOST_FIELD = "tunnel_pid", "tunnel_started", "tunnel_login"
_MARK = "TAO_INF_MS_TUNNEL"
_ADDRESS = "127.0.0.1"
_OPEN_SECONDS = 30
_PATIENCE_SECONDS = 5.0
# What ssh needs to find its agent, its tickets and its words: no secret of ours is among it.
_PASSED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "SSH_AUTH_SOCK", "KRB5CCNAME", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True)
class Tunnel:
    """A tunnel's process, and the login host it goes through (None where only the process was found)."""

    pid: int
    started: float
    login: str | None = None

    def fields(self) -> dict[str, Any]:
        """What a registry entry remembers of it."""
        return {PID_FIELD: self.pid, STARTED_FIELD: self.started, HOST_FIELD: self.login}


def of_entry(entry: ServiceEntry) -> Tunnel | None:
    """The tunnel that the entry names, where that very process still runs."""
    pid, started, login = (entry.extras.get(name) for name in (PID_FIELD, STARTED_FIELD, HOST_FIELD))
    if isinstance(pid, int) and isinstance(started, int | float) and processes.is_same(pid, started):
        return Tunnel(pid, started, login if isinstance(login, str) else None)
    return None


def find(job_id: str, port: int | None) -> Tunnel | None:
    """The tunnel of this service to this port, whoever opened it."""
    for process in _marked(job_id):
        with contextlib.suppress(*_errors()):
            if any(word.startswith(f"{_ADDRESS}:{port}:") for word in process.cmdline()):
                return Tunnel(process.pid, process.create_time())
    return None


def open(cluster: Cluster, first_host: str | None, job_id: str, port: int, node: str, node_port: int) -> Tunnel:
    """Open a tunnel from this machine's `port` to the node's.

    Raises:
        PortTaken: another program has the port.
        ToolError: no login host lets us in, or none lets us forward.
    """
    refused: dict[str, str] = {}
    for host in sorted(cluster.hosts, key=lambda name: name != first_host):
        if not ports.can_bind(port, _ADDRESS):
            raise PortTaken(port)
        told = _open(cluster, host, job_id, f"{_ADDRESS}:{port}:{_bracketed(node)}:{node_port}")
        tunnel = find(job_id, port) if told is None else None
        if tunnel is not None:
            return Tunnel(tunnel.pid, tunnel.started, host)
        if told and "forward" in told.lower() and not ports.can_bind(port, _ADDRESS):
            raise PortTaken(port)
        refused[host] = told or "the tunnel ended as soon as it was open"
    error = slurm_ssh.unreachable(cluster, refused)
    raise ToolError(
        "tunnel_failed", f"the tunnel to {node}:{node_port} could not be opened: {error.message}", error.fix
    )


def close(job_id: str) -> None:
    """End every tunnel of this service.

    Raises:
        ToolError: one did not end.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    number = signal.SIGTERM
    while found := list(_marked(job_id)):
        if time.monotonic() > deadline:
            if number == signal.SIGKILL:
                pids = " ".join(str(process.pid) for process in found)
                raise ToolError("tunnel_not_ended", f"the tunnel of {job_id} runs on: {pids}", f"kill -9 {pids}")
            number, deadline = signal.SIGKILL, time.monotonic() + _PATIENCE_SECONDS
        for process in found:
            with contextlib.suppress(*_errors()):
                process.send_signal(number)
        time.sleep(0.02)
    _log_file(job_id).unlink(missing_ok=True)
    _lock_file(job_id).unlink(missing_ok=True)


@contextlib.contextmanager
def alone(job_id: str) -> Iterator[None]:
    """Nobody else opens a tunnel for this service during the block."""
    file = _lock_file(job_id)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def command(cluster: Cluster, host: str, forward: str) -> list[str]:
    """The command line of the tunnel; `forward` is `address:port:node:port`."""
    options = ("-f", "-N", "-n", "-o", "ExitOnForwardFailure=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none")
    return slurm_ssh.command(cluster, host, *options, "-L", forward)


def _open(cluster: Cluster, host: str, job_id: str, forward: str) -> str | None:
    """None once the tunnel is there, else why it is not."""
    log = _log_file(job_id)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # ssh goes on writing here from the background: to a pipe it would keep us waiting for its end.
    with contextlib.closing(_Output(log)) as output:
        try:
            done = subprocess.run(
                command(cluster, host, forward),
                env={name: os.environ[name] for name in _PASSED if name in os.environ} | {_MARK: job_id},
                stdin=subprocess.DEVNULL,
                stdout=output.descriptor,
                stderr=output.descriptor,
                timeout=_OPEN_SECONDS,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise ToolError(
                "ssh_missing", "there is no ssh on PATH", "sudo apt-get install -y openssh-client"
            ) from None
        except subprocess.TimeoutExpired:
            return f"not open within {_OPEN_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = log.read_text(errors="replace").strip().splitlines()
    return " ".join(lines[-2:]) or f"ssh ended with status {done.returncode}"


class _Output:
    def __init__(self, file: Path) -> None:
        self.descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def close(self) -> None:
        os.close(self.descriptor)


def _marked(job_id: str) -> Iterator[Any]:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(*_errors()):
            if process.environ().get(_MARK) == job_id and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _errors() -> tuple[type[Exception], ...]:
    import psutil

    return (psutil.Error, OSError)


def _folder() -> Path:
    return paths.state_directory() / "tunnels"


def _log_file(job_id: str) -> Path:
    return _folder() / f"{job_id}.log"


def _lock_file(job_id: str) -> Path:
    return _folder() / f"{job_id}.lock"


def _bracketed(node: str) -> str:
    return f"[{node}]" if ":" in node else node

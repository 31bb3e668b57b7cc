"""The port-forward of a service: a small program of ours that outlives the command that started it.

It is remembered by pid and start time, so that nothing else is ever stopped in its place; what a command that was
killed did not get to remember is found by its command line.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kubernetes_cluster import Access

from inference_service import paths, processes
from inference_service.errors import BadInput, ToolError

FIELD = "port_forward"
PROGRAM = Path(__file__).with_name("kubernetes_forwarder.py")

_ADDRESS = "127.0.0.1"
_BACKLOG = 128
_END_SECONDS = 5


@dataclass(frozen=True)
class Forward:
    """One running port-forward: the process, and the port of this machine that it listens on."""

    pid: int
    started: float
    port: int

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://localhost:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether that process still runs."""
        return processes.is_same(self.pid, self.started)

    def to_json(self) -> dict[str, Any]:
        """As a registry entry remembers it."""
        return asdict(self)


def from_json(value: Any) -> Forward | None:
    """What `to_json` wrote; None for anything else."""
    match value:
        case {"pid": int(pid), "started": int() | float() as started, "port": int(port)}:
            return Forward(pid, float(started), port)
        case _:
            return None


def listen(port: int | None) -> socket.socket:
    """A socket that listens on that port of this machine, or on a free one, for `start` to hand on.

    Raises:
        BadInput: another program does.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_ADDRESS, port or 0))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise BadInput(
            "port_in_use",
            f"cannot listen on port {port} of this machine: {error.strerror or error}",
            "leave --forward-port out, or choose another",
        ) from error
    return listener


def start(listener: socket.socket, access: Access, job_id: str, container_port: int) -> Forward:
    """Start the program on that socket. It ends by itself when the service's Job is gone."""
    command = [sys.executable, str(PROGRAM), "--job-id", job_id, "--namespace", access.namespace]
    command += ["--container-port", str(container_port), "--listener", str(listener.fileno())]
    if access.context:
        command += ["--context", access.context]
    log = log_file(job_id)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            cwd="/",
            env=_environment(access),
        )
    started = processes.started_at(process.pid)
    if started is None:
        process.wait()
        raise ToolError("port_forward_failed", f"the port-forward of {job_id} ended at once", f"see {log}")
    return Forward(process.pid, started, listener.getsockname()[1])


@contextlib.contextmanager
def alone(job_id: str) -> Iterator[None]:
    """Two commands at once do not both open the port-forward of the same service."""
    folder = log_file(job_id).parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def running(job_id: str) -> list[Forward]:
    """The port-forwards of that service that this user runs, remembered or not."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline", "uids"]):
        command = process.info["cmdline"] or []
        uids = process.info["uids"]
        if str(PROGRAM) in command and _after("--job-id", command) == job_id and uids and uids.real == os.getuid():
            port = _listening_port(process)
            started = processes.started_at(process.pid)
            if port is not None and started is not None:
                found.append(Forward(process.pid, started, port))
    return found


def end(forward: Forward) -> None:
    """End that process, if it still runs, and wait until it has ended.

    Raises:
        ToolError: it did not.
    """
    import psutil

    if not forward.alive:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(forward.pid)
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(_END_SECONDS)
    if forward.alive:
        raise ToolError(
            "port_forward_not_ended", f"the port-forward {forward.pid} does not end", f"kill -KILL {forward.pid}"
        )


def end_all(job_id: str, remembered: Forward | None) -> None:
    """End every port-forward of that service, and remove what they logged."""
    if remembered is not None:
        end(remembered)
    for forward in running(job_id):
        end(forward)
    log_file(job_id).unlink(missing_ok=True)


def log_file(job_id: str) -> Path:
    """Where a port-forward says what went wrong."""
    return paths.state_directory() / "port-forwards" / f"{job_id}.log"


def _environment(access: Access) -> Mapping[str, str]:
    from inference_service import references

    # It needs the way to the cluster and none of the service's secrets.
    rules = references.load().environment
    environment = {
        name: value for name, value in os.environ.items() if name not in {*rules.secret, *rules.never_passed}
    }
    if access.kubeconfig is not None:
        environment["KUBECONFIG"] = access.kubeconfig
    return environment


def _after(option: str, command: list[str]) -> str | None:
    position = command.index(option) + 1 if option in command else len(command)
    return command[position] if position < len(command) else None


def _listening_port(process: Any) -> int | None:
    import psutil

    try:
        connections = process.net_connections() if hasattr(process, "net_connections") else process.connections()
    except psutil.Error:
        return None
    return next((item.laddr.port for item in connections if item.status == psutil.CONN_LISTEN), None)

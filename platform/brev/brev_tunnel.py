"""`brev port-forward`, supervised: one for each service that is not reached directly, ended with the service.

Depending on its version brev stays, or leaves an ssh behind and ends. Whichever process it is, it is known by the
service's job_id in its environment, and noted down by its pid and the moment it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import brev_cli as cli

from inference_service import paths, processes
from inference_service.errors import PortTaken, ToolError

_MARK = "TAO_INF_TUNNEL_OF"
_OPEN_SECONDS = 60.0
_END_SECONDS = 5.0
_LOOK_EVERY_SECONDS = 0.05


def start(job_id: str, instance: str, local_port: int, remote_port: int) -> dict[str, Any]:
    """Open the tunnel from a port of this machine (127.0.0.1) to one of the instance; its process `{pid, started}`.

    Raises:
        PortTaken: another program of this machine has the local port.
        ToolError: it did not open. Nothing of it is left either way.
    """
    log = paths.state_directory() / "brev" / f"{job_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [cli.executable(), "port-forward", instance, "-p", f"{local_port}:{remote_port}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, _MARK: job_id},
            start_new_session=True,
        )
    try:
        return _once_open(process, job_id, instance, local_port, log.read_text)
    except BaseException:
        end(job_id)
        raise


def is_open(tunnel: Any, local_port: int) -> bool:
    """Whether the process that was noted down still runs, and its port takes connections."""
    match tunnel:
        case {"pid": int(pid), "started": int() | float() as started}:
            return processes.is_same(pid, started) and accepts("127.0.0.1", local_port)
    return False


def end(job_id: str) -> None:
    """End every tunnel of this service, those that nobody noted down included. None is success."""
    found = list(_processes(job_id))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid, started in found:
            if processes.is_same(pid, started):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        deadline = time.monotonic() + _END_SECONDS
        while any(processes.is_same(*known) for known in found) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_SECONDS)
    with contextlib.suppress(OSError):
        (paths.state_directory() / "brev" / f"{job_id}.log").unlink()


def accepts(host: str, port: int, timeout: float = 2.0) -> bool:
    """Whether a connection is accepted there."""
    return connects(host, port, timeout) == "open"


def connects(host: str, port: int, timeout: float) -> str:
    """`open`, `refused` (the machine answers, nothing listens there) or `silent` (a firewall, or no such machine)."""
    try:
        socket.create_connection((host, port), timeout).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
    return "open"


def _once_open(
    process: subprocess.Popen[bytes], job_id: str, instance: str, local_port: int, said: Any
) -> dict[str, Any]:
    deadline = time.monotonic() + _OPEN_SECONDS
    while True:
        found = list(_processes(job_id))
        if accepts("127.0.0.1", local_port) and (holder := _holder(found, local_port)):
            return holder
        # brev may end and leave an ssh behind.
        failed = process.poll() is not None and not found
        if failed or time.monotonic() > deadline:
            words = " ".join(said(errors="replace").split())[-400:]
            if "address already in use" in words.lower():
                raise PortTaken(local_port)
            raise ToolError(
                "tunnel_not_opened",
                f"brev port-forward {instance} -p {local_port} did not open: {words or 'it said nothing'}",
                f"brev port-forward {instance} -p {local_port}:PORT shows why; brev login renews the login",
            )
        time.sleep(_LOOK_EVERY_SECONDS)


def _holder(found: Iterable[tuple[int, float]], local_port: int) -> dict[str, Any] | None:
    """The process that listens on the port; None when it is not one of these."""
    import psutil

    for pid, started in found:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            connections = getattr(process, "net_connections", None) or process.connections
            if any(item.laddr and item.laddr.port == local_port for item in connections(kind="tcp")):
                return {"pid": pid, "started": started}
    return None


def _processes(job_id: str) -> Iterator[tuple[int, float]]:
    """This user's processes that belong to a tunnel of the service: pid and start."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment: Mapping[str, str] = process.environ() if process.uids().real == os.getuid() else {}
            if environment.get(_MARK) == job_id and process.status() != psutil.STATUS_ZOMBIE:
                yield process.pid, process.create_time()

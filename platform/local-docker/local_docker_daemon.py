"""Which Docker daemon, how to reach it, and under which name this machine reaches the ports it publishes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from inference_service.errors import ToolError

if TYPE_CHECKING:
    from docker import DockerClient

# A create or start on a busy disk takes its time; a pull and a log have no limit of their own.
_TIMEOUT_SECONDS = 60
LOCAL_SOCKET = "unix:///var/run/docker.sock"
_NOT_RUNNING = re.compile(r"FileNotFoundError|ConnectionRefused|Connection refused")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def package() -> Any:
    """The `docker` package.

    Raises:
        ToolError: it is not installed.
    """
    try:
        import docker
    except ImportError:
        raise ToolError(
            "missing_dependency",
            "the Python package docker is not installed; local-docker needs it",
            'pip install "docker>=7.1"',
            extra="docker",
        ) from None
    return docker


def default_address(environ: Mapping[str, str] = os.environ) -> str:
    """The daemon's address as docker itself finds it: DOCKER_HOST, the current context, the local socket."""
    address = environ.get("DOCKER_HOST") or _connection_arguments(None, environ).get("base_url")
    return address or LOCAL_SOCKET


def connect(address: str | None = None, environ: Mapping[str, str] = os.environ) -> DockerClient:
    """A client of the daemon at `address`, or of the one that `default_address` names, which was reached.

    Raises:
        ToolError: the package is missing, or the daemon cannot be reached; the fix says what to start or join.
    """
    docker = package()
    try:
        client: DockerClient = docker.DockerClient(
            **_connection_arguments(address, environ), timeout=_TIMEOUT_SECONDS, use_ssh_client=True
        )
        client.ping()
    except (docker.errors.DockerException, OSError, ValueError) as error:
        raise connection_error(error, address or default_address(environ)) from error
    return client


def connection_error(error: BaseException, address: str) -> ToolError:
    """Why the daemon at `address` could not be asked, and what mends it."""
    text = str(error)
    told = f"the Docker daemon at {address} cannot be reached"
    if "paramiko" in text:
        return ToolError(
            "missing_dependency", "ssh:// in DOCKER_HOST needs the package paramiko", "pip install paramiko"
        )
    if "Permission denied" in text and is_on_this_machine(address):
        return ToolError(
            "docker_permission_denied",
            f"this user may not use the Docker daemon at {address}",
            'sudo usermod -aG docker "$USER" && newgrp docker',
        )
    if not is_on_this_machine(address) or not _NOT_RUNNING.search(text):
        # The docker command reads the same settings, and says more of what is wrong with them.
        return ToolError("docker_unreachable", f"{told}: {text}", f"DOCKER_HOST={shlex.quote(address)} docker info")
    return ToolError(
        "docker_unreachable",
        f"{told}: it does not run",
        "sudo systemctl start docker (Linux), or open Docker Desktop; a daemon elsewhere is named by DOCKER_HOST",
    )


def is_on_this_machine(address: str) -> bool:
    """Whether the ports that this daemon publishes are ports of this machine."""
    parts = urlsplit(address)
    return parts.scheme not in ("ssh", "tcp", "http", "https") or (
        parts.scheme != "ssh" and parts.hostname in _LOOPBACK_NAMES
    )


def service_host(address: str, bind_address: str) -> str:
    """The host of a service's URL: `localhost` where the port is this machine's (seed 4.3), else what reaches it."""
    if is_on_this_machine(address):
        everywhere_or_here = bind_address in ("0.0.0.0", "::") or bind_address in _LOOPBACK_NAMES  # noqa: S104
        return "localhost" if everywhere_or_here else _in_url(bind_address)
    if bind_address not in ("0.0.0.0", "::"):  # noqa: S104
        return _in_url(bind_address)
    parts = urlsplit(address)
    host = parts.hostname or ""
    return _in_url(_ssh_host_name(host) if parts.scheme == "ssh" else host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _ssh_host_name(alias: str) -> str:
    # The name in DOCKER_HOST may be an alias of ~/.ssh/config; -- keeps a name from being read as an option.
    try:
        done = subprocess.run(["ssh", "-G", "--", alias], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return alias
    names = [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("hostname ")]
    return names[0] if names else alias


def _connection_arguments(address: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    docker = package()
    arguments: dict[str, Any] = docker.utils.kwargs_from_env(environment=dict(environ))
    if address is not None:
        if address.startswith("unix:"):
            arguments.pop("tls", None)
        return {**arguments, "base_url": address}
    if "base_url" in arguments:
        return arguments
    # Docker Desktop, Colima and rootless daemons listen elsewhere than /var/run/docker.sock and say so in a context.
    context = docker.context.ContextAPI.get_context(environ.get("DOCKER_CONTEXT") or None)
    if context is None:
        raise ToolError(
            "docker_context_unknown",
            f"the Docker context {environ.get('DOCKER_CONTEXT')!r} does not exist",
            "docker context ls; then export DOCKER_CONTEXT, or docker context use NAME",
        )
    if context.Host:
        arguments["base_url"] = context.Host
    if context.TLSConfig is not None:
        arguments["tls"] = context.TLSConfig
    return arguments

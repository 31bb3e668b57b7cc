"""What Brev needs of this machine and of the user, each check with what mends it. Nothing is started or created."""

from __future__ import annotations

import os
import shutil
import subprocess

import brev_cli as cli

from inference_service.contracts import Check
from inference_service.errors import ToolError

_LOGIN = "brev login"


def checks() -> list[Check]:
    """The brev command and its version, ssh, the login and the instances. The token's value is never looked at."""
    try:
        program = cli.executable()
    except ToolError as error:
        return [Check("brev", False, error.message, error.fix), _ssh()]
    found = [Check("brev", True, f"{program} {_version(program)}".strip()), _ssh()]
    try:
        known = cli.instances()
    except ToolError as error:
        return [*found, Check("login", False, f"{error.message}{_token()}", error.fix or _LOGIN)]
    running = [item for item in known.values() if item.running]
    described = "; ".join(
        f"{item.name} ({item.status}, {', '.join(filter(None, (item.instance_type, item.gpu))) or 'type unknown'})"
        for item in known.values()
    )
    return [
        *found,
        Check("login", True, "brev ls answers; it renews the login, which lasts an hour"),
        Check("instances", True, described or "none: --create-instance yes creates one, which bills"),
        *[_docker(item) for item in running],
    ]


def _docker(instance: cli.Instance) -> Check:
    name = f"docker on {instance.name}"
    script = "docker version --format '{{.Server.Version}}'; nvidia-smi -L 2>/dev/null; true"
    try:
        done = cli.execute(instance.name, script, timeout=30)
    except ToolError as error:
        return Check(name, False, error.message, f"brev exec {instance.name} true")
    lines = done.output.split("\n")
    if not lines[0].strip():
        return Check(name, False, done.errors or "Docker does not answer", f"brev exec {instance.name} 'docker info'")
    gpus = [line.partition(" (UUID")[0] for line in lines if line.startswith("GPU ")]
    return Check(name, True, f"Docker {lines[0].strip()}; {'; '.join(gpus) or 'no NVIDIA GPU seen'}")


def _ssh() -> Check:
    found = shutil.which("ssh")
    if found is None:
        return Check("ssh", False, "the ssh command is not on PATH", "sudo apt-get install -y openssh-client")
    return Check("ssh", True, found)


def _token() -> str:
    return "; BREV_API_TOKEN is set, which brev does not read by itself" if os.environ.get("BREV_API_TOKEN") else ""


def _version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()

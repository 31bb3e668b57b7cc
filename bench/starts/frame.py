"""What the benches of a start have in common: a start as it is measured, and how a command is run and timed.

Times are of the clock that the platforms write in their own records, so that "the platform says running" is theirs.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2 = ("--network-arch", "smollm2", "--model-path", MODEL)
READINESS = "/api/v1/health/readiness"
_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Start:
    """One start: seconds until the platform runs it, from then until ready was reported, CPU seconds, calls.

    CPU is that of the command and what it waits for; a tunnel that outlives it is not in it. Calls are what the
    platform's `unit` says; None where this start's were not counted.
    """

    until_running: float
    until_ready: float
    cpu: float
    calls: int | None


class Platform(Protocol):
    """A platform on which the same service is started by us and by the platform's own client."""

    name: str
    client: str
    unit: str

    def missing(self) -> str:
        """Why it cannot be measured here, or nothing."""
        ...

    def opened(self) -> AbstractContextManager[None]:
        """The platform is there during the block, and the environment names it."""
        ...

    def counted(self) -> AbstractContextManager[None]:
        """Calls are counted during the block, by something that may slow them down."""
        ...

    def ours(self) -> Start:
        """A start by start_service.py; the service is stopped afterwards."""
        ...

    def by_hand(self) -> Start:
        """The same by the platform's own client; what was made is removed afterwards."""
        ...


@dataclass(frozen=True)
class Run:
    """A command that ended: what it printed, CPU seconds of it and its children, and from when to when it ran."""

    printed: str
    cpu: float
    began: float
    ended: float

    def start(self, running: float, calls: int | None) -> Start:
        """It as a start whose service the platform has run since `running`."""
        return Start(running - self.began, self.ended - running, self.cpu, calls)


def timed(command: Sequence[str], environ: Mapping[str, str] | None = None) -> Run:
    """Run it to its end; a command that fails ends the bench."""
    before, began = os.times(), time.time()
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"not done after {_PATIENCE_SECONDS} s: {shlex.join(command)}")
    ended, after = time.time(), os.times()
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(done.stdout, cpu, began, ended)


def command(script: str, *arguments: str) -> list[str]:
    """The command line of one of the skill's scripts."""
    return [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]


def script(name: str, *arguments: str) -> dict[str, Any]:
    """The document that one of the skill's scripts prints."""
    document: dict[str, Any] = json.loads(timed(command(name, *arguments)).printed)
    return document


def until_ready(url: str) -> str:
    """The shell's words that ask for readiness ten times a second until it is answered with 200."""
    return f"until curl -sf -o /dev/null {url}{READINESS}; do sleep 0.1; done"


def container_running_since(container: str) -> float:
    """When Docker on this machine began to run that container."""
    inspect = ["docker", "inspect", "--format", "{{.State.StartedAt}}", container]
    # Docker writes nanoseconds, which datetime does not read.
    return utc(timed(inspect).printed.strip()[:26].rstrip("Z"))


def utc(written: str) -> float:
    """Seconds since the epoch of an ISO 8601 time in UTC with up to six digits of a second's fraction."""
    whole, _, fraction = written.partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp() + float(f"0.{fraction or 0}")


def image_missing(image: str) -> str:
    """Why Docker on this machine cannot run that image, or nothing."""
    try:
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True)
    except OSError as error:
        return f"no docker command: {error}"
    return found.stderr.strip()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

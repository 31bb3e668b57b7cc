#!/usr/bin/env python3
"""What a start costs beyond what the platform's own client takes: the same service, started both ways in turn.

On local-docker: start_service.py against `docker run` (the very command that --dry-run prints) with a loop of curl that
asks for readiness ten times a second. For each: seconds until the container runs, from there until ready is reported,
and CPU seconds of the client's side; medians and ratios. And how many calls to the platform's API one start makes. A
platform whose engine is not there is skipped with a notice.

    python bench/platform_start.py --rounds 7            about 30 s
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

SKILL = Path(__file__).resolve().parent.parent
SCRIPTS = SKILL / "scripts"
sys.path[:0] = [str(SCRIPTS)]

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
READINESS = "/api/v1/health/readiness"


@dataclass(frozen=True)
class Start:
    """One start: seconds until the platform runs it, from then until ready was reported, CPU seconds of the client."""

    until_running: float
    until_ready: float
    cpu: float


class Platform(Protocol):
    """A platform on which the same service is started by us and by its own client."""

    name: str
    own_client: str

    def missing(self) -> str:
        """Why it cannot be measured here, or nothing."""
        ...

    def ours(self) -> Start:
        """A start by start_service.py; the service is stopped afterwards."""
        ...

    def theirs(self) -> Start:
        """The same by the platform's own client; what was made is removed afterwards."""
        ...

    def api_calls(self) -> Counter[str]:
        """The calls to the platform's API that one start of ours makes."""
        ...


class LocalDocker:
    """The smollm2 image on a Docker engine."""

    name = "local-docker"
    own_client = "docker run + curl"
    _wanted = ("--platform", "local-docker", "--network-arch", "smollm2", "--model-path", MODEL)

    def missing(self) -> str:
        """Whether the engine and the image are there."""
        image = _script("resolve_image", "--network-arch", "smollm2")["image"]
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True)
        return found.stderr.strip()

    def ours(self) -> Start:
        """start_service.py, which returns when the service is ready."""
        began, command = time.time(), _command("start_service", *self._wanted)
        printed, cpu = _measured(command)
        ended = time.time()
        job_id = json.loads(printed)["job_id"]
        try:
            return _start(began, _running_since(job_id), ended, cpu)
        finally:
            _script("stop_service", "--job-id", job_id)

    def theirs(self) -> Start:
        """`docker run` as --dry-run shows it, then curl until readiness answers 200."""
        port = _free_port()
        shown = _script("start_service", *self._wanted, "--host-port", str(port), "--dry-run")["would_create"]
        url = f"http://127.0.0.1:{port}{READINESS}"
        # docker run is given a network that is there, as it is after any start of ours.
        shell = (
            f"{shown['docker_run']} >/dev/null && until curl -sf -o /dev/null {shlex.quote(url)}; do sleep 0.1; done"
        )
        began = time.time()
        try:
            _, cpu = _measured(["sh", "-c", shell])
            ended = time.time()
            return _start(began, _running_since(shown["name"]), ended, cpu)
        finally:
            subprocess.run(["docker", "rm", "--force", "--volumes", shown["name"]], capture_output=True)

    def api_calls(self) -> Counter[str]:
        """Counted where the docker package sends them."""
        import requests

        from inference_service import lifecycle, platforms
        from inference_service.contracts import LaunchSpec
        from inference_service.registry import Registry

        spec = LaunchSpec.from_json(_script("build_payload", *self._wanted))
        calls: Counter[str] = Counter()
        send = requests.Session.send

        def counted(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            path = re.sub(r"^/v[0-9.]+(?=/)|[?].*|/[0-9a-f]{64}|/" + spec.job_id, "", request.path_url)
            calls[f"{request.method} {path}"] += 1
            return send(session, request, **options)

        with mock.patch.object(requests.Session, "send", counted):
            entry = lifecycle.start(spec, lambda progress: None, Registry())
        platforms.load(self.name).stop(entry)
        Registry().remove(entry.job_id)
        return calls


PLATFORMS: tuple[Platform, ...] = (LocalDocker(),)


def main() -> None:
    """Print the figures of every platform that is there, and the same as one JSON line at the end."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="starts each way (default 5)")
    rounds = options.parse_args().rounds
    summary = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TAO_INF_MS_STATE_FILE": f"{folder}/registry.json", "XDG_STATE_HOME": folder}
        for platform in PLATFORMS:
            if why := platform.missing():
                print(f"{platform.name}: skipped: {why}")
                continue
            summary[platform.name] = measure(platform, rounds)
    print("\n" + json.dumps(summary))


def measure(platform: Platform, rounds: int) -> dict[str, Any]:
    """Start it both ways in turn, `rounds` times each, after one of each that does not count; print the medians."""
    ways: dict[str, Callable[[], Start]] = {"start_service.py": platform.ours, platform.own_client: platform.theirs}
    starts: dict[str, list[Start]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = way()
            if number:
                starts[name].append(start)
    print(f"{platform.name}: medians of {rounds} starts, seconds")
    print(f"{'':<20} {'until it runs':>14} {'until ready':>12} {'together':>9} {'CPU':>6}")
    medians = {name: _medians(found) for name, found in starts.items()}
    for name, figures in medians.items():
        print(f"{name:<20} {figures[0]:>14.3f} {figures[1]:>12.3f} {figures[2]:>9.3f} {figures[3]:>6.3f}")
    ours, theirs = medians.values()
    ratios = [mine / their for mine, their in zip(ours, theirs, strict=True)]
    print(f"{'ratio':<20} {ratios[0]:>13.2f}x {ratios[1]:>11.2f}x {ratios[2]:>8.2f}x {ratios[3]:>5.2f}x")
    calls = platform.api_calls()
    print(f"API calls of one start: {calls.total()} ({', '.join(f'{count} {call}' for call, count in calls.items())})")
    names = ("until_running", "until_ready", "together", "cpu")
    return {"ratios": dict(zip(names, ratios, strict=True)), "api_calls": calls.total()}


def _medians(starts: Sequence[Start]) -> tuple[float, float, float, float]:
    return (
        statistics.median(start.until_running for start in starts),
        statistics.median(start.until_ready for start in starts),
        statistics.median(start.until_running + start.until_ready for start in starts),
        statistics.median(start.cpu for start in starts),
    )


def _start(began: float, running: float, ended: float, cpu: float) -> Start:
    return Start(until_running=running - began, until_ready=ended - running, cpu=cpu)


def _running_since(container: str) -> float:
    command = ["docker", "inspect", "--format", "{{.State.StartedAt}}", container]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    # Docker writes nanoseconds, which datetime does not read.
    return datetime.fromisoformat(f"{written[:26].rstrip('Z'):0<26}+00:00").timestamp()


def _measured(command: Sequence[str]) -> tuple[str, float]:
    """What the command printed, and the CPU seconds that it and its children took."""
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout, after.children_user + after.children_system - before.children_user - before.children_system


def _command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]


def _script(script: str, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_measured(_command(script, *arguments))[0])
    return document


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()

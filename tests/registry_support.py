"""What the registry's tests share: a launch spec, and programs that use the registry in processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from support import SCRIPTS, SKILL

from inference_service.contracts import LaunchSpec, ServiceEntry


def launch_spec(job_id: str, **fields: Any) -> LaunchSpec:
    """A spec of a service, complete but for what the test is about."""
    known: dict[str, Any] = {
        "network_arch": "cosmos-rl",
        "platform": "local-docker",
        "model_path": "hf_model://nvidia/Cosmos-Reason1-7B",
        "image": "example/image:1",
        "command": "umask 0 && true",
        "env": {},
        "secret_env": (),
        "num_gpus": 1,
        "container_port": 8080,
    }
    return LaunchSpec(job_id=job_id, **{**known, **fields})


def service(job_id: str, **fields: Any) -> ServiceEntry:
    """An entry of a running service."""
    known: dict[str, Any] = {
        "network_arch": "cosmos-rl",
        "platform": "local-docker",
        "host_url": "http://localhost:8080",
    }
    return ServiceEntry(job_id=job_id, **{**known, **fields})


@contextlib.contextmanager
def program(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running Python program with the skill's library on its path, its outputs piped; killed at the end."""
    paths = f"import sys; sys.path[:0] = [{str(SCRIPTS)!r}, {str(SKILL / 'tests')!r}]\n"
    command = [sys.executable, "-c", paths + text, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that the program prints; waits for it."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def output_of(process: subprocess.Popen[str]) -> str:
    """What the program printed; it has to succeed."""
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout


def run_program(text: str, *arguments: str) -> str:
    """What such a program printed; it has to succeed."""
    with program(text, *arguments) as process:
        return output_of(process)

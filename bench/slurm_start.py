#!/usr/bin/env python3
"""Starting a service on Slurm until it is ready, against the commands a person would type for the very same job script.

Baseline: `ssh LOGIN sbatch`, `ssh LOGIN squeue` every half second until it runs, `ssh -f -N -L`, a readiness request
every 0.1 s. Ours: start_service.py. The cluster is the one that SLURM_HOSTNAME, SLURM_USER, SSH_KEY_PATH and
IMAGE_SMOLLM2 name; without it nothing is measured. Both run in turn; the medians are compared, and the ssh connections
of each are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PATIENCE_SECONDS = 60
START = (
    "--platform", "slurm", "--network-arch", "smollm2",
    "--model-path", "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each (default: %(default)s)")
    rounds = parser.parse_args().rounds
    if not os.environ.get("SLURM_HOSTNAME"):
        print("slurm_start: not measured, SLURM_HOSTNAME names no cluster")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = {**os.environ, "TAO_INF_MS_STATE_FILE": str(folder / "registry.json"), "XDG_STATE_HOME": name}
        environ["PATH"] = f"{counting_ssh(folder)}:{environ['PATH']}"
        os.environ.update(environ)
        measured: dict[str, list[tuple[float, int]]] = {"by hand": [], "start_service.py": []}
        for _ in range(rounds):
            for who, start in (("by hand", by_hand), ("start_service.py", ours)):
                (folder / "connections").write_text("")
                seconds = start()
                measured[who].append((seconds, connections_in(folder)))
                if start is ours:
                    script("stop_service.py", "--all")
    medians = {who: statistics.median(seconds for seconds, _ in found) for who, found in measured.items()}
    for who, found in measured.items():
        connections = statistics.median(number for _, number in found)
        print(f"{who:>17}: {medians[who]:.2f} s from nothing to ready, {connections:g} ssh connections")
    print(f"{'ratio':>17}: {medians['start_service.py'] / medians['by hand']:.2f} of the time by hand")


def counting_ssh(folder: Path) -> Path:
    """A folder with an `ssh` that notes each connection."""
    real, programs = shutil.which("ssh"), folder / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\necho x >>{shlex.quote(str(folder / "connections"))}\nexec {real} "$@"\n')
    (programs / "ssh").chmod(0o755)
    return programs


def connections_in(folder: Path) -> int:
    return len((folder / "connections").read_text().split())


def script(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / arguments[0]), *arguments[1:]], stdout=subprocess.PIPE, check=True, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def ours() -> float:
    began = time.monotonic()
    script("start_service.py", *START)
    return time.monotonic() - began


def by_hand() -> float:
    planned = script("start_service.py", *START, "--dry-run")["would_create"]
    job_script = planned["job_script"].replace("--output=log", "--output=/dev/null")
    login = [*ssh(), os.environ["SLURM_HOSTNAME"].split(",")[0]]
    began = time.monotonic()
    done = subprocess.run(
        [*login, "bash -lc 'sbatch --parsable'"], input=job_script, capture_output=True, text=True, check=True
    )
    job = done.stdout.strip()
    tunnel = None
    try:
        while True:
            asked = subprocess.run(
                [*login, f"squeue -h -j {job} -o '%T %N'"], capture_output=True, text=True, check=True
            )
            state, _, node = asked.stdout.strip().partition(" ")
            if state == "RUNNING":
                break
            within_patience(began, f"the job is {state or 'gone'}")
            time.sleep(0.5)
        port = free_port()
        forward = f"127.0.0.1:{port}:{node}:8080"
        tunnel = subprocess.Popen([*login[:-1], "-N", "-L", forward, login[-1]], stderr=subprocess.DEVNULL)
        while not is_ready(f"http://127.0.0.1:{port}/api/v1/health/readiness"):
            within_patience(began, "the service is not ready")
            time.sleep(0.1)
        return time.monotonic() - began
    finally:
        if tunnel is not None:
            tunnel.kill()
            tunnel.wait()
        subprocess.run([*login, f"scancel {job}; while squeue -h -j {job} | grep -q .; do sleep 0.2; done"], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def within_patience(began: float, told: str) -> None:
    if time.monotonic() - began > PATIENCE_SECONDS:
        sys.exit(f"by hand: {told} after {PATIENCE_SECONDS} s")


def ssh() -> list[str]:
    user, key = os.environ.get("SLURM_USER"), os.environ.get("SSH_KEY_PATH")
    return ["ssh", "-o", "BatchMode=yes", *(["-l", user] if user else []), *(["-i", key] if key else [])]


def is_ready(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()

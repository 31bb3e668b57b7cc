"""Brev: a start on an instance that is up, against the brev command by hand, both on the double of Brev.

By hand is what the published snippets do: list the instances, run the container over `brev exec`, ask ssh for the
address. Ours also proves that Docker answers, that the image and enough GPUs are there, and that no other container has
the name. The double's commands take milliseconds where Brev takes seconds, so what counts is how many there are.

    python bench/platform_brev.py            about 30 s
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SKILL / "scripts"), str(SKILL / "tests"), str(SKILL / "platform" / "brev")]

from brev_double import BrevDouble, double_in  # noqa: E402
from docker_engine import BASE_IMAGE, entry_of, free_port, launch_spec  # noqa: E402

from inference_service import platforms  # noqa: E402
from inference_service.contracts import Driver, LaunchSpec, State  # noqa: E402

ROUNDS = 5
OPTIONS = {"instance": "mine", "reach": "direct"}


def main() -> None:
    """Print the figures, and the same as one JSON line at the end."""
    found = shutil.which("docker") and subprocess.run(["docker", "image", "inspect", BASE_IMAGE], capture_output=True)
    if not found or found.returncode:
        print(f"no Docker engine with {BASE_IMAGE} to measure on")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(TAO_INF_MS_STATE_FILE=f"{folder}/registry.json", XDG_STATE_HOME=folder)
        with double_in(Path(folder, "brev")) as brev:
            figures = measured(brev, platforms.load("brev"))
    print(f"from the command to a container that runs (median of {ROUNDS})")
    print(f"  by hand          {figures['by_hand']:6.2f} s   {figures['commands_by_hand']:.0f} brev commands")
    ratio = figures["ours"] / figures["by_hand"]
    print(
        f"  ours             {figures['ours']:6.2f} s   {figures['commands']:.0f} brev commands   {ratio:.2f} x by hand"
    )
    print(f"  of it our own CPU{figures['ours_cpu']:6.2f} s")
    print(f"one look at its state, asked until it is ready: {figures['status'] * 1000:.0f} ms, no brev command")
    print("\n" + json.dumps(figures))


def measured(brev: BrevDouble, driver: Driver) -> dict[str, float]:
    """The medians of either way, in turns: seconds, our CPU seconds, and how many brev commands each took."""
    brev.add("mine")
    runs: dict[str, list[float]] = {
        name: [] for name in ("by_hand", "commands_by_hand", "ours", "commands", "ours_cpu", "status")
    }
    for _ in range(ROUNDS):
        spec = launch_spec(platform="brev", host_port=free_port(), platform_options=OPTIONS)
        began, calls = time.perf_counter(), len(brev.get("calls"))
        by_hand(driver, spec)
        runs["by_hand"].append(time.perf_counter() - began)
        runs["commands_by_hand"].append(len(brev.get("calls")) - calls)
        subprocess.run(["docker", "rm", "--force", spec.job_id], check=True, capture_output=True)

        spec = launch_spec(platform="brev", host_port=free_port(), platform_options=OPTIONS)
        began, calls, cpu = time.perf_counter(), len(brev.get("calls")), time.process_time()
        entry = entry_of(spec, driver.start(spec, lambda progress: None))
        runs["ours"].append(time.perf_counter() - began)
        runs["ours_cpu"].append(time.process_time() - cpu)
        runs["commands"].append(len(brev.get("calls")) - calls)
        began, calls = time.perf_counter(), len(brev.get("calls"))
        assert driver.status(entry).state is State.RUNNING
        assert len(brev.get("calls")) == calls
        runs["status"].append(time.perf_counter() - began)
        driver.stop(entry)
    return {name: statistics.median(values) for name, values in runs.items()}


def by_hand(driver: Driver, spec: LaunchSpec) -> None:
    """The same container by the brev command alone, and its instance's address."""
    script = driver.dry_run(spec)["on_the_instance"][-1].replace("--network tao_default", "")
    for command in (["brev", "ls", "--json"], ["brev", "exec", "mine", script], ["ssh", "-G", "mine"]):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The registry against the usual template: read the JSON file, choose the lowest port that is not in it, write it back.

Baselines: that template as the published skill has it (no lock, written in place), and the same made as safe as ours
with what is at hand (the filelock package, a temporary file, fsync of file and folder, rename). Many processes register
services at once, each as fast as it can; then it is counted which entries are there, and how many ports were given
twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# Both wait for a line, so that all processes start to write at the same moment, print how often they failed, and live
# until all are done: a port that was reserved by a process that died is free again.
TEMPLATE = """
import contextlib, json, os, sys
from datetime import datetime, timezone
file, number, writes = sys.argv[1], sys.argv[2], int(sys.argv[3])
{preparation}
print("ready", flush=True)
sys.stdin.readline()
failed = 0
for index in range(writes):
    try:
        with lock:
            state = {{}}
            if os.path.exists(file):
                with open(file) as stream:
                    state = json.load(stream)
            used = {{entry.get("host_port") for entry in state.values() if isinstance(entry, dict)}}
            port = next(port for port in range(8080, 32768) if port not in used)
            job_id = f"job-{{number}}-{{index}}"
            state[job_id] = {{
                "network_arch": "cosmos-rl", "platform": "local-docker", "image": "image", "host_port": port,
                "host_url": f"http://localhost:{{port}}", "started_at": datetime.now(timezone.utc).isoformat(),
            }}
            state["latest"] = job_id
            write(state)
    except Exception:
        failed += 1
print(failed, flush=True)
sys.stdin.read()
"""
NAIVE = TEMPLATE.format(
    preparation="""
lock = contextlib.nullcontext()
def write(state):
    with open(file, "w") as stream:
        json.dump(state, stream, indent=2)
"""
)
WITH_FILELOCK = TEMPLATE.format(
    preparation="""
import filelock
lock = filelock.FileLock(file + ".lock")
def write(state):
    with open(file + ".tmp", "w") as stream:
        json.dump(state, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(file + ".tmp", file)
    folder = os.open(os.path.dirname(file), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
"""
)
OURS = """
import sys
from pathlib import Path
from inference_service import processes, references
from inference_service.contracts import LaunchSpec
from inference_service.registry import Registry
file, number, writes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
registry = Registry(file)
references.load()
processes.this_process()
print("ready", flush=True)
sys.stdin.readline()
failed = 0
for index in range(writes):
    try:
        spec = LaunchSpec(
            f"job-{number}-{index}", "cosmos-rl", "local-docker", "/m", "image", "command", {}, (), 1, 8080
        )
        registry.reserve(spec, needs_host_port=True)
    except Exception:
        failed += 1
print(failed, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Outcome:
    """What many processes left: entries that are in the file, ports given twice, exceptions, seconds it took."""

    kept: int
    duplicate_ports: int
    exceptions: int
    seconds: float


def measure(program: str, processes: int, writes: int) -> Outcome:
    """Let that many processes register that many services each."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "registry.json")
        text = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n{program}"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", text, str(file), str(number), str(writes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        started = time.perf_counter()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        exceptions = sum(int(process.stdout.readline()) for process in running if process.stdout is not None)
        seconds = time.perf_counter() - started
        for process in running:
            process.communicate()
        return _outcome(file, exceptions, seconds)


def _outcome(file: Path, exceptions: int, seconds: float) -> Outcome:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        state = {}  # The last writers left half a file: nothing can be read from it.
    ports = [entry["host_port"] for entry in state.values() if isinstance(entry, dict)]
    return Outcome(len(ports), len(ports) - len(set(ports)), exceptions, seconds)


def _median(outcomes: Sequence[Outcome]) -> Outcome:
    return sorted(outcomes, key=lambda outcome: (outcome.kept, outcome.seconds))[len(outcomes) // 2]


def show(what: str, outcome: Outcome, attempts: int) -> None:
    """One line of the bench."""
    print(
        f"{what:<32} {outcome.kept:4} of {attempts} entries kept, {outcome.duplicate_ports:3} ports given twice, "
        f"{outcome.exceptions:4} exceptions, {outcome.kept / outcome.seconds:6.0f} kept/s of "
        f"{attempts / outcome.seconds:6.0f} tried/s"
    )


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--processes", type=int, default=16, help="processes at once (default 16)")
    options.add_argument("--writes", type=int, default=20, help="services that each registers (default 20)")
    options.add_argument("--rounds", type=int, default=3, help="rounds; the one with the median of entries kept counts")
    arguments = options.parse_args()

    attempts = arguments.processes * arguments.writes

    programs = {"baseline: read-modify-write": NAIVE, "this skill's registry": OURS}
    if find_spec("filelock"):
        programs["baseline: made safe by filelock"] = WITH_FILELOCK
    # Round by round, so that whatever else the machine does slows all of them alike.
    rounds: dict[str, list[Outcome]] = {program: [] for program in programs.values()}
    for _ in range(arguments.rounds):
        for program, outcomes in rounds.items():
            outcomes.append(measure(program, arguments.processes, arguments.writes))
    typical = {program: _median(outcomes) for program, outcomes in rounds.items()}
    for what, program in programs.items():
        show(what, typical[program], attempts)
    naive, ours, safe = typical[NAIVE], typical[OURS], typical.get(WITH_FILELOCK)
    print(f"entries kept: {ours.kept / max(naive.kept, 1):.1f} x the read-modify-write template")
    print(f"tries per second: {naive.seconds / ours.seconds:.3f} x that template, which mostly fails before it writes")
    if safe is not None:
        print(f"entries kept per second: {safe.seconds / ours.seconds:.1f} x the template made safe by filelock")


if __name__ == "__main__":
    main()

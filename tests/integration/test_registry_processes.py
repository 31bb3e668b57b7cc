"""Many processes at once, and processes that are killed: nothing is lost, and no port is given twice."""

from __future__ import annotations

import json
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from registry_support import launch_spec, line_of, output_of, program, run_program, service
from support import eventually

from inference_service.contracts import StartedService
from inference_service.registry import Registry, reservation_is_dead

REGISTER_TWENTY = """
import dataclasses
from pathlib import Path
from inference_service.contracts import LaunchSpec, StartedService
from inference_service.registry import Registry
file, number = Path(sys.argv[1]), sys.argv[2]
registry = Registry(file)
for index in range(20):
    spec = LaunchSpec(f"job-{number}-{index}", "cosmos-rl", "local-docker", "/m", "image", "command", {}, (), 1, 8080)
    entry = registry.reserve(spec, needs_host_port=True)
    registry.commit(StartedService(entry.job_id, entry.network_arch, entry.platform, entry.host_url))
    print(entry.job_id, entry.host_port)
"""

# Kills itself before its Nth call of a C function (that is, between any two system calls), for every N there is.
KILL_AT_EVERY_STEP = """
import json, os, signal
from pathlib import Path
from inference_service.contracts import ServiceEntry
from inference_service.registry import Registry
file = Path(sys.argv[1])
registry = Registry(file)
old = ServiceEntry("old", "cosmos-rl", "local-docker", "http://localhost:8080", started_at="2026-01-01T00:00:00+00:00")
new = ServiceEntry("new", "cosmos-rl", "local-docker", "http://localhost:8081", started_at="2026-02-01T00:00:00+00:00")
registry.write(old)
before = file.read_bytes()

def write_and_die_at(step):
    calls = 0
    def count(frame, event, argument):
        nonlocal calls
        if event == "c_call":
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    registry.write(new)
    sys.setprofile(None)
    os._exit(0)

outcomes = []
while True:
    file.write_bytes(before)
    child = os.fork()
    if child == 0:
        write_and_die_at(len(outcomes) + 1)
    status = os.waitpid(child, 0)[1]
    found = sorted(Registry(file).read().services)
    outcomes.append({"killed": os.WIFSIGNALED(status), "found": found})
    Registry(file).mark("old", "running")
    if not os.WIFSIGNALED(status):
        break
print(json.dumps({"outcomes": outcomes, "files": sorted(os.listdir(file.parent))}))
"""

WRITE_FOR_EVER = """
from pathlib import Path
from inference_service.contracts import ServiceEntry
from inference_service.registry import Registry
registry = Registry(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    registry.write(ServiceEntry(f"job-{number}", "cosmos-rl", "local-docker", "http://localhost:8080"))
    print(number, flush=True)
"""

HOLD_THE_LOCK = """
import signal
from pathlib import Path
from inference_service.registry_file import RegistryFile
with RegistryFile(Path(sys.argv[1])).locked():
    print("held", flush=True)
    signal.pause()
"""

RESERVE_AND_WAIT = """
import signal
from inference_service.contracts import LaunchSpec
from inference_service.registry import Registry
spec = LaunchSpec("theirs", "cosmos-rl", "local-docker", "/m", "image", "command", {}, (), 1, 8080)
print(Registry().reserve(spec, needs_host_port=True).host_port, flush=True)
signal.pause()
"""


WRITE_ONE = """
from pathlib import Path
from registry_support import service
from inference_service.registry import Registry
Registry(Path(sys.argv[1])).write(service("a"))
"""

reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/locks")


@pytest.mark.slow
def test_32_processes_that_register_20_services_each_lose_none_and_get_640_ports(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    told: dict[str, int] = {}
    with ExitStack() as stack:
        programs = [stack.enter_context(program(REGISTER_TWENTY, str(file), str(number))) for number in range(32)]
        for process in programs:
            told.update((job_id, int(port)) for job_id, port in map(str.split, output_of(process).splitlines()))
    snapshot = Registry(file).read()
    assert len(told) == 640
    assert {job_id: entry.host_port for job_id, entry in snapshot.services.items()} == told
    assert len(set(told.values())) == 640
    assert {entry.status for entry in snapshot.services.values()} == {"running"}
    last = max(snapshot.services.values(), key=lambda entry: entry.started_at)
    assert snapshot.latest == last.job_id


def test_a_kill_at_any_step_of_a_write_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    told = json.loads(run_program(KILL_AT_EVERY_STEP, str(tmp_path / "kept" / "registry.json")))
    found = [tuple(outcome["found"]) for outcome in told["outcomes"]]
    assert len(found) > 30, "the write was not stepped through"
    assert set(found) == {("old",), ("new", "old")}
    assert found == sorted(found, key=len), "once it is new, it stays new"
    assert found[0] == ("old",) and found[-1] == ("new", "old")
    assert told["files"] == ["registry.json", "registry.json.lock"], "killed writers left files behind"


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_that_was_told_to_be_written(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "registry.json"
    moments = random.Random(20261124)
    for _ in range(12):
        file.unlink(missing_ok=True)
        with program(WRITE_FOR_EVER, str(file)) as writer:
            line_of(writer)
            time.sleep(moments.uniform(0, 0.02))  # Not waiting for anything: it is the moment of the kill.
            writer.kill()
            # communicate() would pass over what the reading of the first line has put into the buffer.
            assert writer.stdout is not None
            told = 1 + len(writer.stdout.read().splitlines())
        written = list(Registry(file).read().services)
        assert written == [f"job-{number}" for number in range(1, len(written) + 1)]
        assert told <= len(written) <= told + 1
    Registry(file).write(service("after"))
    assert sorted(path.name for path in file.parent.iterdir()) == ["registry.json", "registry.json.lock"]


@reads_proc
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    with program(HOLD_THE_LOCK, str(file)) as holder, program(WRITE_ONE, str(file)) as waiting:
        assert line_of(holder) == "held"
        assert eventually(lambda: _waits_for_a_lock(waiting.pid))
        assert Registry(file).read().services == {}, "a reader does not wait"
        holder.kill()
        output_of(waiting)
    assert list(Registry(file).read().services) == ["a"]


@reads_proc
def test_a_lock_file_that_was_tidied_away_does_not_let_two_in(tmp_path: Path) -> None:
    file, lock = tmp_path / "registry.json", tmp_path / "registry.json.lock"
    with ExitStack() as stack:
        holder = stack.enter_context(program(HOLD_THE_LOCK, str(file)))
        assert line_of(holder) == "held"
        waiting = stack.enter_context(program(HOLD_THE_LOCK, str(file)))
        assert eventually(lambda: _waits_for_a_lock(waiting.pid))
        lock.unlink()
        newcomer = stack.enter_context(program(HOLD_THE_LOCK, str(file)))
        assert line_of(newcomer) == "held"
        holder.kill()
        holder.wait()
        assert eventually(lambda: _waits_for_a_lock(waiting.pid, of=lock)), "it took a removed file's lock"
        newcomer.kill()
        assert line_of(waiting) == "held"


def test_a_reservation_of_a_killed_process_gives_its_port_back_and_keeps_its_entry() -> None:
    registry = Registry()
    with program(RESERVE_AND_WAIT) as process:
        port = int(line_of(process))
        mine = registry.reserve(launch_spec("mine"), needs_host_port=True)
        assert mine.host_port != port
        assert not reservation_is_dead(registry.read().services["theirs"])
        process.kill()
        process.wait()
    assert reservation_is_dead(registry.read().services["theirs"])
    again = registry.reserve(launch_spec("again", host_port=port), needs_host_port=True)
    assert again.host_port == port
    registry.commit(StartedService("theirs", "cosmos-rl", "local-docker", "http://localhost:1"))
    assert sorted(registry.read().services) == ["again", "mine", "theirs"]


def _waits_for_a_lock(pid: int, of: Path | None = None) -> bool:
    """Whether the kernel lists the process as waiting (`->`) for a lock, of this file where one is given."""
    inode = f":{of.stat().st_ino} " if of else ""
    lines = Path("/proc/locks").read_text().splitlines()
    return any(" -> " in line and f" {pid} " in line and inode in line for line in lines)

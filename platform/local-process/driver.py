"""local-process: an arch's inner command as a process of this machine, in a session of its own."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import local_process_environment as environment
import local_process_group as group
import local_process_log as log

from inference_service import paths, ports, processes, references
from inference_service.contracts import (
    Check,
    LaunchSpec,
    PlatformOption,
    PlatformStatus,
    Progress,
    Report,
    ServiceEntry,
    StartedService,
    State,
)
from inference_service.errors import BadInput, PortTaken, ToolError
from inference_service.references import Arch

_PATIENCE_SECONDS = 5.0
_LEAST_FREE_MEMORY_BYTES = 600_000_000

# The children of this very program, whose exit status we can know.
_children: dict[int, subprocess.Popen[bytes]] = {}


class Driver:
    """Runs services as processes of this machine."""

    name = "local-process"
    options: tuple[PlatformOption, ...] = ()
    needs_host_port = True

    def preflight(self) -> list[Check]:
        """bash, an arch that can run here, memory."""
        return [_bash_check(), _archs_check(), _memory_check()]

    def check(self, spec: LaunchSpec) -> None:
        """Refuse an arch that cannot run as a process, or not on this machine as it is, and container-only wishes.

        Raises:
            BadInput: which, why, and what to do instead.
        """
        arch = references.load().arch(spec.network_arch)
        if (obstacle := _obstacle(arch)) is not None:
            raise obstacle
        if spec.mounts:
            raise BadInput(
                "mounts_not_supported",
                f"{self.name} has no mounts: the process sees this machine's files where they are",
                "leave --mount out and give the file's path as --model-path",
            )
        if spec.model_path.startswith("/") and not Path(spec.model_path).exists():
            raise BadInput(
                "model_path_missing", f"there is no {spec.model_path} on this machine", "correct --model-path"
            )

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        """The command line, the names of its variables and where its log will be."""
        return {
            "command": shlex.join(_command(spec)),
            "env_names": environment.names(spec),
            "listens_on": f"{environment.HOST}:{spec.host_port or '(lowest free port)'}",
            "log_file": str(log.file(spec.job_id)),
        }

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        """Start the command. It outlives this program, its terminal and their signals."""
        self.check(spec)
        assert spec.host_port is not None, "needs_host_port"  # noqa: S101
        environ = environment.build(spec)
        if group.of_job(spec.job_id):
            raise BadInput("job_id_in_use", f"the service {spec.job_id} runs already", "build another launch spec")
        if not ports.can_bind(spec.host_port, environment.HOST):
            raise PortTaken(spec.host_port)
        report(Progress("starting", f"{spec.network_arch} as a process of this machine, port {spec.host_port}"))
        try:
            child = _spawn(spec, environ)
        except BaseException as error:
            _undo(spec.job_id)
            if isinstance(error, OSError):
                raise ToolError(
                    "process_not_started",
                    f"cannot start the service: {error}",
                    f"make room below {paths.state_directory()}, or export XDG_STATE_HOME=/another/folder",
                ) from error
            raise
        _children[child.pid] = child
        return StartedService(
            job_id=spec.job_id,
            network_arch=spec.network_arch,
            platform=self.name,
            host_url=_url(spec.host_port),
            image=spec.image,
            model_path=spec.model_path,
            num_gpus=spec.num_gpus,
            host_port=spec.host_port,
            started_at=_moment(time.time()),
            stop_after=environ.get(group.STOP_AFTER),
            extras=_extras(spec.job_id, child.pid),
        )

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        """RUNNING while the process that was started runs; never takes another process of that pid for it."""
        pid, started = entry.extras.get("pid"), entry.extras.get("pid_started")
        if isinstance(pid, int) and isinstance(started, int | float):
            running = processes.is_same(pid, started)
        else:
            # Reserved and not yet registered, ended before it could be looked at, or written by another tool.
            running = bool(group.of_job(entry.job_id))
        if running:
            return PlatformStatus(State.RUNNING)
        # Asked after the above: a child that has ended stays a zombie, and its exit status readable, until this.
        child = _children.get(pid) if isinstance(pid, int) else None
        code = child.poll() if child is not None else None
        if code is None:
            return PlatformStatus(State.EXITED, "its process has ended")
        return PlatformStatus(State.EXITED if code == 0 else State.FAILED, _how_it_ended(code))

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        """What it wrote to its standard output and error."""
        try:
            yield from log.read(entry.job_id, tail, follow, lambda: self.status(entry).dead)
        except FileNotFoundError as error:
            raise ToolError(
                "no_log",
                f"there is no log {log.file(entry.job_id)}",
                "set XDG_STATE_HOME as it was when the service was started",
            ) from error

    def stop(self, entry: ServiceEntry) -> None:
        """End all of its processes and remove its folder. A process that only has its old pid is left alone."""
        left = group.end(entry.job_id, _PATIENCE_SECONDS)
        if left:
            raise ToolError(
                "process_not_ended",
                f"processes of {entry.job_id} run on: {', '.join(map(str, left))}",
                f"kill -9 {' '.join(map(str, left))}",
            )
        log.remove(entry.job_id)

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        """The entry as it is: nothing lies between it and this machine that could have died."""
        return entry

    def discover(self) -> list[StartedService]:
        """The services of our registry whose leading process runs."""
        archs, ours, found = references.load().archs, paths.registry_owner(), []
        for item in group.marked():
            environ = item.environ
            port = environ.get(group.HOST_PORT, "")
            if environ[group.REGISTRY] != ours or not port.isdigit() or not item.leads:
                continue
            if environ.get(group.NETWORK_ARCH) not in archs:
                continue
            found.append(
                StartedService(
                    job_id=environ[group.JOB_ID],
                    network_arch=environ[group.NETWORK_ARCH],
                    platform=self.name,
                    host_url=_url(int(port)),
                    model_path=environ.get(group.MODEL_PATH, ""),
                    host_port=int(port),
                    started_at=_moment(item.process.create_time()),
                    stop_after=environ.get(group.STOP_AFTER),
                    extras=_extras(environ[group.JOB_ID], item.process.pid),
                )
            )
        return found


def _command(spec: LaunchSpec) -> list[str]:
    return ["bash", "-c", spec.command]


def _spawn(spec: LaunchSpec, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    log.remove(spec.job_id)  # Of a service of this job_id that has ended, or was never begun.
    output = log.create(spec.job_id)
    try:
        return subprocess.Popen(
            _command(spec),
            env=environ,
            cwd=log.folder(spec.job_id),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def _undo(job_id: str) -> None:
    # Interrupted inside Popen, the child may exist and not yet carry its marks: these come with exec, a moment later.
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline and not group.of_job(job_id):
        time.sleep(0.05)
    group.end(job_id, 0)
    log.remove(job_id)


def _extras(job_id: str, pid: int) -> dict[str, Any]:
    return {"pid": pid, "pid_started": processes.started_at(pid), "log_file": str(log.file(job_id))}


def _url(port: int) -> str:
    return f"http://{environment.HOST}:{port}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _how_it_ended(code: int) -> str:
    return f"its process exited with status {code}" if code >= 0 else f"its process was ended by signal {-code}"


def _obstacle(arch: Arch) -> BadInput | None:
    """Why this arch cannot run as a process of this machine; None when it can."""
    local = arch.launch.local_process
    if local is None:
        return BadInput(
            "arch_needs_container",
            f"{arch.network_arch} runs in its container only: the port of its server cannot be chosen",
            "use --platform local-docker",
        )
    if shutil.which("bash") is None:
        return BadInput("bash_missing", "there is no bash on PATH, which runs the inner command", "install bash")
    missing = [name for name in local.needs if importlib.util.find_spec(name) is None]
    program = arch.launch.argv
    if program[0].startswith("python") and program[1] == "-m":
        if not _module_exists(program[2]):
            return BadInput(
                "arch_not_here", f"{arch.network_arch} is not in this release: no {program[2]}", "choose another"
            )
    elif shutil.which(program[0]) is None:
        missing.append(program[0])
    if missing:
        return BadInput(
            "arch_not_installed",
            f"{arch.network_arch} needs {', '.join(missing)}, which {sys.executable} does not have",
            f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(f'{paths.SKILL}[{local.extra}]')}",
        )
    return None


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _bash_check() -> Check:
    bash = shutil.which("bash")
    return Check("bash", bash is not None, bash or "not on PATH", "" if bash else "install bash")


def _archs_check() -> Check:
    archs = [arch for arch in references.load().archs.values() if arch.launch.local_process is not None]
    obstacles = {arch.network_arch: _obstacle(arch) for arch in archs}
    told = "; ".join(f"{name}: {problem.message if problem else 'can run'}" for name, problem in obstacles.items())
    if None in obstacles.values():
        return Check("network archs", True, told)
    fix = next((problem.fix for problem in obstacles.values() if problem), "use --platform local-docker")
    return Check("network archs", False, told, fix)


def _memory_check() -> Check:
    import psutil

    free = psutil.virtual_memory().available
    enough = free >= _LEAST_FREE_MEMORY_BYTES
    needed = f"about {_LEAST_FREE_MEMORY_BYTES / 1e6:.0f} MB are needed"
    return Check("memory", enough, f"{free / 1e6:.0f} MB free", "" if enough else f"close programs: {needed}")

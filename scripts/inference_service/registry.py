"""The service registry (seed 4.3): which services there are, where they answer, and which port each one holds.

A service passes through it in two steps. `reserve` notes its job_id and its port before anything is started, so that no
other start takes them and a crash leaves a trace; `commit` notes what the platform runs. Every change is made under the
file's lock, and touches nothing but what it is about.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_service import paths, ports, processes, references, registry_entries
from inference_service.contracts import LaunchSpec, ServiceEntry, StartedService
from inference_service.errors import BadInput
from inference_service.registry_file import RegistryFile, State

STARTING = "starting"
RUNNING = "running"
GONE = "gone"


@dataclass(frozen=True)
class Snapshot:
    """The services at one moment, by job_id, and the running one that was started last."""

    services: Mapping[str, ServiceEntry]
    latest: str | None


class Registry:
    """The registry in `file`, by default the one that the environment or the seed names.

    Every method raises ToolError where the file cannot be used: see `RegistryFile`.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.path = file or paths.registry_file()
        self._file = RegistryFile(self.path)

    def read(self) -> Snapshot:
        """What is registered now; waits for nobody."""
        state = self._file.load()
        return Snapshot(registry_entries.services(state), registry_entries.latest(state))

    def reserve(
        self,
        spec: LaunchSpec,
        needs_host_port: bool,
        bind_address: str = "127.0.0.1",
        exclude: Collection[int] = (),
    ) -> ServiceEntry:
        """Note the service that this process is about to start, and the port of this machine that it gets.

        The port is `spec.host_port` where that is given, else the lowest free one of the range that service.yaml gives.
        `exclude` are ports that were found to be taken since. This process may reserve again for the same job_id: the
        service moves to another port.

        Raises:
            BadInput: the job_id is registered already, or the port that was asked for is not free.
            ToolError: no port is free.
        """
        # What takes time is done before anybody has to wait for the lock.
        this_process = processes.this_process()
        refs = references.load()
        usable_ports = range(refs.first_port, refs.last_port + 1)
        with self._changing() as state:
            noted = state.get(spec.job_id)
            if spec.job_id == registry_entries.LATEST or not (noted is None or _is_reserved_here(noted)):
                raise _job_id_taken(spec.job_id)
            held = {port: holder for port, holder in _held_ports(state).items() if holder != spec.job_id}
            port = None
            if spec.host_port is not None:
                port = ports.require_free(spec.host_port, held, bind_address)
            elif needs_host_port:
                port = ports.lowest_free(usable_ports, {*held, *exclude}, bind_address)
            entry = ServiceEntry(
                job_id=spec.job_id,
                network_arch=spec.network_arch,
                platform=spec.platform,
                host_url=f"http://localhost:{port}" if port else "",
                status=STARTING,
                image=spec.image,
                model_path=spec.model_path,
                num_gpus=spec.num_gpus,
                host_port=port,
                started_at=registry_entries.now(),
                stop_after=spec.stop_after(),
                reserved_by=this_process,
                # Should this process die, they say where on the platform to look (a namespace, a login host).
                extras={"platform_options": dict(spec.platform_options)} if spec.platform_options else {},
            )
            state[spec.job_id] = registry_entries.to_json(entry)
        return entry

    def commit(self, started: StartedService) -> ServiceEntry:
        """Note what the platform runs, reserved or not. What the platform does not tell stays as it was reserved.

        `started_at` is the platform's, else now; the service started last becomes `latest`.
        """
        with self._changing() as state:
            noted = state.get(started.job_id)
            reserved = registry_entries.services({started.job_id: noted}).get(started.job_id)
            entry = ServiceEntry(
                job_id=started.job_id,
                network_arch=started.network_arch,
                platform=started.platform,
                host_url=started.host_url,
                status=RUNNING,
                image=started.image or (reserved.image if reserved else ""),
                model_path=started.model_path or (reserved.model_path if reserved else ""),
                num_gpus=started.num_gpus or (reserved.num_gpus if reserved else 0),
                platform_job_id=started.platform_job_id,
                host_port=started.host_port or (reserved.host_port if reserved else None),
                docker_url=started.docker_url,
                started_at=registry_entries.utc(started.started_at) or registry_entries.now(),
                stop_after=registry_entries.utc(started.stop_after) or (reserved.stop_after if reserved else None),
                extras={**registry_entries.unknown_keys(noted), **started.extras},
            )
            state[started.job_id] = registry_entries.to_json(entry)
        return entry

    def write(self, entry: ServiceEntry) -> None:
        """Note this entry as it is; keys of an earlier one that we do not know stay."""
        with self._changing() as state:
            noted = registry_entries.unknown_keys(state.get(entry.job_id))
            state[entry.job_id] = {**noted, **registry_entries.to_json(entry)}

    def remove(self, job_id: str) -> bool:
        """Forget a service; whether there was one. `latest` moves to the one started last of those left."""
        with self._changing() as state:
            if not registry_entries.is_service(state.get(job_id), job_id):
                return False
            del state[job_id]
            return True

    def mark(self, job_id: str, status: str) -> bool:
        """Note a service's status (`running` or `gone`); whether there is such a service."""
        with self._changing() as state:
            noted = state.get(job_id)
            if not registry_entries.is_service(noted, job_id):
                return False
            state[job_id] = {key: value for key, value in noted.items() if key != "reserved_by"} | {"status": status}
            return True

    @contextmanager
    def _changing(self) -> Iterator[State]:
        with self._file.locked():
            state = self._file.load_locked()
            before = dict(state)
            yield state
            latest = registry_entries.latest(state)
            state.pop(registry_entries.LATEST, None)
            if latest is not None:
                state[registry_entries.LATEST] = latest
            if state != before:
                self._file.save(state)


def reservation_is_dead(entry: ServiceEntry) -> bool:
    """Whether the process that was about to start this service has died on the way."""
    return entry.status == STARTING and not _alive(entry.reserved_by)


def _alive(reserved_by: Any) -> bool:
    match reserved_by:
        case {"pid": int(pid), "started": int() | float() as started}:
            return processes.is_same(pid, started)
        case _:
            return False


def _is_reserved_here(noted: Any) -> bool:
    reserved_by = noted.get("reserved_by") if isinstance(noted, Mapping) and noted.get("status") == STARTING else None
    return isinstance(reserved_by, Mapping) and reserved_by.get("pid") == os.getpid() and _alive(reserved_by)


def _held_ports(state: State) -> dict[int, str]:
    """The ports that entries hold. A dead reservation holds none: if its service does run, the port cannot be bound."""
    alive: dict[str, bool] = {}
    held = registry_entries.held_ports(state)
    for port, job_id in list(held.items()):
        if state[job_id].get("status") == STARTING:
            process = str(state[job_id].get("reserved_by"))
            if process not in alive:
                alive[process] = _alive(state[job_id].get("reserved_by"))
            if not alive[process]:
                del held[port]
    return held


def _job_id_taken(job_id: str) -> BadInput:
    return BadInput(
        "job_id_taken",
        f"the registry has a service with job_id {job_id!r} already",
        f"stop that one: stop_service.py --job-id {job_id}, or build a new launch spec",
        job_id=job_id,
    )

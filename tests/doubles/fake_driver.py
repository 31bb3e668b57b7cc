"""A platform in memory that keeps the contract of contracts.Driver, and can be told to fail or to interrupt.

Follows `Driver` in scripts/inference_service/contracts.py: stop is idempotent, a start that fails leaves nothing, a
service that is not there is EXITED, discover lists what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from inference_service.contracts import (
    Check,
    LaunchSpec,
    PlatformOption,
    PlatformStatus,
    Report,
    ServiceEntry,
    StartedService,
    State,
)


@dataclass
class FakeDriver:
    """`running` is what runs there. `on_start`, `on_stop` and `on_status` are called first and may raise."""

    name: str = "fake"
    options: tuple[PlatformOption, ...] = ()
    needs_host_port: bool = True
    running: dict[str, StartedService] = field(default_factory=dict)
    log: list[str] = field(default_factory=lambda: ["loading", "out of memory"])
    dead: PlatformStatus = field(default_factory=lambda: PlatformStatus(State.FAILED, "exited with status 1"))
    stopped: list[str] = field(default_factory=list)
    ports_asked: list[int | None] = field(default_factory=list)
    on_start: Callable[[LaunchSpec], None] = lambda spec: None
    on_stop: Callable[[ServiceEntry], None] = lambda entry: None
    on_status: Callable[[ServiceEntry], PlatformStatus | None] = lambda entry: None
    on_reach: Callable[[ServiceEntry], ServiceEntry] = lambda entry: entry
    on_discover: Callable[[], None] = lambda: None

    def preflight(self) -> list[Check]:
        return []

    def check(self, spec: LaunchSpec) -> None:
        pass

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        return {}

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        self.ports_asked.append(spec.host_port)
        self.on_start(spec)
        started = StartedService(
            spec.job_id, spec.network_arch, self.name, f"http://127.0.0.1:{spec.host_port}", host_port=spec.host_port
        )
        self.running[spec.job_id] = started
        return started

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        said = self.on_status(entry)
        return said or (PlatformStatus(State.RUNNING) if entry.job_id in self.running else self.dead)

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        yield from self.log[-tail:] if tail else self.log

    def stop(self, entry: ServiceEntry) -> None:
        self.on_stop(entry)
        self.stopped.append(entry.job_id)
        self.running.pop(entry.job_id, None)

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        return self.on_reach(entry)

    def discover(self) -> list[StartedService]:
        self.on_discover()
        return list(self.running.values())

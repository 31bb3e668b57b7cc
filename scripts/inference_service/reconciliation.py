"""Brings registry and platforms together again: what runs is registered, what does not run is not shown as running.

A start that was killed leaves a reservation, a crash of the machine leaves entries without a service, a lost registry
leaves services without an entry. Each platform is asked, and only what it says for certain changes anything: a platform
that cannot be asked says nothing about its services.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from inference_service import platforms
from inference_service.contracts import Driver, PlatformStatus, ServiceEntry, StartedService, State
from inference_service.errors import ToolError
from inference_service.registry import GONE, RUNNING, STARTING, Registry, reservation_is_dead

# A starter that was killed may have sent the platform its request a moment before: what it asked for is still to come.
_LATE_ARRIVAL_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class ReconcileReport:
    """What was done about which services, by job_id.

    `adopted` run and were not registered as running; `settled` is what starts that died have left, registered or
    cleared away; `gone` have no service any more and are marked so, or were `removed`; `unknown` (job_id, platform,
    reason) could not be judged and were left alone.
    """

    adopted: tuple[str, ...]
    settled: tuple[str, ...]
    gone: tuple[str, ...]
    removed: tuple[str, ...]
    unknown: tuple[Mapping[str, str], ...]


def reconcile(registry: Registry, remove_gone: bool = False) -> ReconcileReport:
    """Hold the registry against what the platforms run.

    Services whose service is gone are marked, or with `remove_gone` removed together with what is left of them.

    Raises:
        ToolError: the registry cannot be read or written.
    """
    result = _Result()
    registered = registry.read().services
    known = platforms.names()
    for name in known:
        entries = [entry for entry in registered.values() if entry.platform == name]
        _Platform(name, registry, remove_gone, result).reconcile(entries)
    for entry in registered.values():
        if entry.platform not in known:
            result.leave(entry, f"there is no platform {entry.platform!r} here")
    return result.report()


def settle_reservations(registry: Registry, platform: str) -> None:
    """Take up or clear away what starters that died left on this platform; what cannot be judged stays as it is."""
    dead = [
        entry
        for entry in registry.read().services.values()
        if entry.platform == platform and reservation_is_dead(entry)
    ]
    if dead:
        _Platform(platform, registry, False, _Result()).settle(dead)


def find(job_id: str) -> StartedService | None:
    """The service with this job_id that some platform runs, registered or not. Some platforms may not be askable."""
    for name in platforms.names():
        for service in _discover(name)[0].values():
            if service.job_id == job_id:
                return service
    return None


@dataclass
class _Result:
    by_outcome: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[Mapping[str, str]] = field(default_factory=list)

    def note(self, outcome: str, job_id: str) -> None:
        self.by_outcome.setdefault(outcome, []).append(job_id)

    def leave(self, entry: ServiceEntry, reason: str) -> None:
        self.unknown.append({"job_id": entry.job_id, "platform": entry.platform, "reason": reason})

    def report(self) -> ReconcileReport:
        outcomes = {name: tuple(self.by_outcome.get(name, ())) for name in ("adopted", "settled", "gone", "removed")}
        return ReconcileReport(**outcomes, unknown=tuple(self.unknown))


class _Platform:
    def __init__(self, name: str, registry: Registry, remove_gone: bool, result: _Result) -> None:
        self._name, self._registry, self._remove_gone, self._result = name, registry, remove_gone, result
        self._driver = platforms.load(name)
        self._discovered: dict[str, StartedService] = {}

    def reconcile(self, entries: list[ServiceEntry]) -> None:
        self._discovered, _ = _discover(self._name)
        for entry in entries:
            if reservation_is_dead(entry):
                self._settle(entry)
            elif entry.status != STARTING:
                self._judge(entry)
        self._adopt_unregistered()

    def settle(self, dead: list[ServiceEntry]) -> None:
        self._discovered, _ = _discover(self._name)
        for entry in dead:
            self._settle(entry)

    def _judge(self, entry: ServiceEntry) -> None:
        status = _status(self._driver, entry)
        if status.state is State.UNKNOWN:
            self._result.leave(entry, status.reason)
        elif not status.dead:
            if entry.status == GONE:
                self._registry.mark(entry.job_id, RUNNING)
                self._result.note("adopted", entry.job_id)
        elif self._remove_gone:
            self._clear_away(entry, "removed")
        else:
            self._registry.mark(entry.job_id, GONE)
            self._result.note("gone", entry.job_id)

    def _settle(self, entry: ServiceEntry) -> None:
        """A reservation whose process died: its service came to life, or half of it, or nothing."""
        status = self._once_settled(entry)
        if entry.job_id in self._discovered:
            self._registry.commit(self._discovered[entry.job_id])
            self._result.note("settled", entry.job_id)
        elif status.dead or status.state is State.PENDING:
            self._clear_away(entry, "settled")
        else:
            self._result.leave(entry, status.reason or f"it runs, but {self._name} does not list it")

    def _once_settled(self, entry: ServiceEntry) -> PlatformStatus:
        deadline = time.monotonic() + _LATE_ARRIVAL_SECONDS
        while True:
            status = _status(self._driver, entry)
            if not status.dead or entry.job_id in self._discovered or time.monotonic() > deadline:
                break
            time.sleep(_LOOK_EVERY_SECONDS)
        if status.state is State.RUNNING and entry.job_id not in self._discovered:
            self._discovered, _ = _discover(self._name)
        return status

    def _clear_away(self, entry: ServiceEntry, outcome: str) -> None:
        try:
            self._driver.stop(entry)
        except ToolError as error:
            self._result.leave(entry, f"what is left of it could not be removed: {error.message}")
            return
        self._registry.remove(entry.job_id)
        self._result.note(outcome, entry.job_id)

    def _adopt_unregistered(self) -> None:
        # Read again: whoever has registered or stopped a service since knows better than what we saw before.
        registered = self._registry.read().services
        for service in self._discovered.values():
            if service.job_id in registered:
                continue
            entry = ServiceEntry(
                service.job_id, service.network_arch, service.platform, service.host_url, extras=service.extras
            )
            if not _status(self._driver, entry).dead:
                self._registry.commit(service)
                self._result.note("adopted", service.job_id)


def _discover(platform: str) -> tuple[dict[str, StartedService], str]:
    """What the platform runs by job_id, and why it could not be asked."""
    try:
        return {service.job_id: service for service in platforms.load(platform).discover()}, ""
    except Exception as error:
        # A client library that is not installed, no engine, no network: other platforms are not to suffer from it.
        return {}, str(error)


def _status(driver: Driver, entry: ServiceEntry) -> PlatformStatus:
    try:
        return driver.status(entry)
    except Exception as error:
        return PlatformStatus(State.UNKNOWN, str(error))

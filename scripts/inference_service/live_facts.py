"""What the registry cannot know of a service: what its platform says now, how long it is idle, what it has cost so far.

All platforms and services are asked at once, and the list never waits for one of them longer than a few seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from inference_service import bounded, idleness, output, platforms, pricing, registry_entries
from inference_service.contracts import Driver, PlatformStatus, ServiceEntry, State
from inference_service.errors import ToolError
from inference_service.pricing import Cost, GpuPrice
from inference_service.registry import GONE, RUNNING, STARTING, reservation_is_dead

SECONDS = 3.0
"""The longest that all the asking takes."""


@dataclass(frozen=True)
class LiveFacts:
    """One service now. `age_seconds` and `idle_minutes` are None where they are not known."""

    age_seconds: float | None
    status: PlatformStatus
    idle_minutes: float | None
    cost: Cost

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "age_seconds": self.age_seconds,
            "state": self.status.state.value,
            "state_reason": self.status.reason,
            "idle_minutes": self.idle_minutes,
            "cost_usd": None if self.cost.usd is None else format(self.cost.usd, "f"),
            "unpriced_because": self.cost.unpriced_because,
        }


def look(entries: Sequence[ServiceEntry], seconds: float = SECONDS) -> dict[str, LiveFacts]:
    """The facts about these services by job_id, after at most about `seconds`; what nobody told by then is UNKNOWN."""
    if not entries:
        return {}
    states: dict[str, PlatformStatus] = {}
    idle: dict[str, float | None] = {}
    # What several threads would import at once is imported before, and so are the drivers.
    importlib.import_module("requests")
    drivers = {name: _driver(name) for name in {entry.platform for entry in entries}}
    tasks: list[Callable[[], None]] = []
    for entry in entries:
        tasks.append(_state_task(entry, drivers[entry.platform], states))
        if entry.status == RUNNING:
            tasks.append(_idle_task(entry, seconds, idle))
    bounded.run(tasks, seconds)

    prices, problem = _prices()
    now = datetime.now(timezone.utc)
    facts = {}
    for entry in entries:
        late = PlatformStatus(State.UNKNOWN, f"{entry.platform} gave no answer within {seconds:g} s")
        status = states.get(entry.job_id, late)
        cost = Cost(None, problem) if problem else _cost(entry, status, prices, now)
        facts[entry.job_id] = LiveFacts(_age(entry, now), status, idle.get(entry.job_id), cost)
    return facts


def _driver(platform: str) -> Driver | ToolError:
    try:
        return platforms.load(platform)
    except ToolError as error:
        return error


def _state_task(
    entry: ServiceEntry, driver: Driver | ToolError, states: dict[str, PlatformStatus]
) -> Callable[[], None]:
    def ask() -> None:
        states[entry.job_id] = _state(entry, driver)

    return ask


def _idle_task(entry: ServiceEntry, seconds: float, idle: dict[str, float | None]) -> Callable[[], None]:
    def ask() -> None:
        try:
            found = idleness.ask(entry, seconds)
        except Exception:
            return
        idle[entry.job_id] = None if isinstance(found, str) else found.idle_minutes

    return ask


def _state(entry: ServiceEntry, driver: Driver | ToolError) -> PlatformStatus:
    if entry.status == STARTING and not reservation_is_dead(entry):
        # The platform may not have heard of it yet, which it would call the end of it.
        return PlatformStatus(State.PENDING, f"process {(entry.reserved_by or {}).get('pid')} is starting it")
    if isinstance(driver, ToolError):
        return PlatformStatus(State.UNKNOWN, driver.message)
    try:
        return driver.status(entry)
    except Exception as error:
        return PlatformStatus(State.UNKNOWN, str(error) or type(error).__name__)


def _age(entry: ServiceEntry, now: datetime) -> float | None:
    began = registry_entries.utc(entry.started_at)
    return None if began is None else round(max(0.0, (now - datetime.fromisoformat(began)).total_seconds()), 1)


def _prices() -> tuple[tuple[GpuPrice, ...], str]:
    """The prices, and why there are none to be had: that costs nobody the list."""
    try:
        return pricing.gpu_prices(), ""
    except ToolError as error:
        output.note(f"warning: nothing is priced: {error.message}; fix: {error.fix}")
        return (), error.message


def _cost(entry: ServiceEntry, status: PlatformStatus, prices: Sequence[GpuPrice], now: datetime) -> Cost:
    if entry.status == GONE or status.dead:
        return Cost(None, "it has ended, and when is not known")
    if entry.status == STARTING or status.state is State.PENDING:
        return Cost(None, "it does not run yet")
    return pricing.cost_so_far(entry, prices, now)

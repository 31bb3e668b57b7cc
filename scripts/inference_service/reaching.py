"""The way to a service right now: tunnels and port-forwards die, and are opened again before a request."""

from __future__ import annotations

from inference_service.contracts import Driver, Report, ServiceEntry
from inference_service.registry import Registry


def reachable(entry: ServiceEntry, driver: Driver, report: Report, registry: Registry | None = None) -> ServiceEntry:
    """The entry as it can be reached now; where that is another way than before, the registry knows it too.

    Raises:
        ToolError: it cannot be reached.
    """
    found = driver.reach(entry, report)
    if found != entry:
        registry = registry or Registry()
        # Whoever stopped it meanwhile has the last word.
        if entry.job_id in registry.read().services:
            registry.write(found)
    return found

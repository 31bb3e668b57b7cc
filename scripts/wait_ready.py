"""Wait until a service is ready to answer, and tell at once when it never will be (seed 4.3).

The service is the one named by --job-id or --network-arch, or the only one there is. Exit status 4: not within
--timeout; what it was last seen doing is in the error, and it goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from inference_service import output


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = output.ArgumentParser(__doc__)
    add = arguments.add_argument
    add("--job-id", metavar="J", help="the service, by job_id")
    add("--network-arch", metavar="A", help="the service, by its arch")
    add("--timeout", metavar="S", type=float, default=1800.0, help="seconds to wait (default: %(default)g)")
    add("--events", action="store_true", help="progress on standard error as JSON lines")
    return arguments


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Wait for it; how long that took."""
    from inference_service import lifecycle, platforms, progress, reaching, readiness, registry, routing

    readiness.require_timeout(arguments.timeout)
    services = registry.Registry()
    entry = routing.resolve_or_ask(services.read(), arguments.job_id, arguments.network_arch)
    driver = platforms.load(entry.platform)
    began = time.monotonic()
    with progress.reporting(arguments.events) as report:
        entry = lifecycle.until_started(entry, services, arguments.timeout, report)
        entry = reaching.reachable(entry, driver, report, services)
        readiness.wait(entry, driver, max(0.1, arguments.timeout - (time.monotonic() - began)), report)
    # While it was waited for, the way to it may have become another.
    entry = services.read().services.get(entry.job_id, entry)
    return {
        "job_id": entry.job_id,
        "network_arch": entry.network_arch,
        "platform": entry.platform,
        "host_url": entry.host_url,
        "ready": True,
        "seconds": round(time.monotonic() - began, 2),
    }


if __name__ == "__main__":
    sys.exit(output.run(parser(), main))

"""Stop services and forget them: those named by --job-id, all, or the one started last once that is confirmed (seed 5).

A service that is already gone counts as stopped. One that could not be stopped stays registered: exit status 1 says
which, and why.

  stop_service.py --expired --idle 30m

stops what nobody needs any more: services past their --max-hours, and those without a request for 30 minutes. It asks
nothing, so cron may run it: whoever is connected gets the answer first. What is loading, not ready, busy, out of reach
or another service in its place is not idle; `kept` says why each was left. TAO servers count from when a request
arrives: take --idle longer than the longest one.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from inference_service import output

if TYPE_CHECKING:
    from inference_service.lifecycle import StopReport
    from inference_service.registry import Registry


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = output.ArgumentParser(__doc__)
    which = arguments.add_mutually_exclusive_group()
    which.add_argument(
        "--job-id", metavar="J", action="append", default=[], help="the service; may be given several times"
    )
    which.add_argument("--all", action="store_true", help="all services that are registered")
    arguments.add_argument(
        "--delete-instance",
        choices=("yes", "no"),
        help="whether a rented machine that was created for these services is deleted with them: it bills until then",
    )
    arguments.add_argument("--expired", action="store_true", help="services that have run for their --max-hours")
    arguments.add_argument("--idle", metavar="D", help="services without a request for D: 90s, 30m, 2h, 1d")
    arguments.add_argument("--yes", action="store_true", help="without --job-id and --all: stop the latest, do not ask")
    return arguments


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Stop them; which were stopped, and which were gone already."""
    from inference_service import lifecycle, rented_machines, stop_choice
    from inference_service.errors import ToolError
    from inference_service.registry import Registry

    registry = Registry()
    document: dict[str, Any]
    if arguments.expired or arguments.idle is not None:
        done = _stop_unneeded(arguments, registry)
        document = {"already_gone": [], "kept": [dict(item) for item in done.kept]}
    else:
        chosen = stop_choice.choose(registry, arguments.job_id, arguments.all, arguments.yes)
        done = lifecycle.stop(rented_machines.decided(chosen.entries, arguments.delete_instance), registry)
        document = {"already_gone": list(chosen.already_gone)}
    document = {"stopped": list(done.stopped), "failed": [dict(failure) for failure in done.failed], **document}
    if done.failed:
        told = "; ".join(f"{failure['job_id']}: {failure['message']}" for failure in done.failed)
        fix = "stop_service.py " + " ".join(f"--job-id {failure['job_id']}" for failure in done.failed)
        raise ToolError(
            "not_stopped", f"could not be stopped, and still registered: {told}", f"mend that, then {fix}", **document
        )
    return document


def _stop_unneeded(arguments: argparse.Namespace, registry: Registry) -> StopReport:
    from inference_service import lifecycle, rented_machines, upkeep
    from inference_service.errors import BadInput

    if arguments.job_id or arguments.all or arguments.yes:
        raise BadInput(
            "usage", "--expired and --idle choose among all services: --job-id, --all and --yes do not go with them",
            "leave one or the other out",
        )  # fmt: skip
    idle_seconds = None if arguments.idle is None else upkeep.duration(arguments.idle)
    unneeded = upkeep.Upkeep(registry, arguments.expired, idle_seconds)
    entries = tuple(registry.read().services.values())
    if arguments.delete_instance is not None:
        entries = rented_machines.decided(entries, arguments.delete_instance)
    return lifecycle.stop(entries, registry, unneeded.reason_to_keep)


def render(document: Any) -> None:
    """One line for each."""
    for job_id in document["stopped"]:
        print(f"stopped {job_id}")
    for job_id in document["already_gone"]:
        print(f"already gone {job_id}")
    for item in document.get("kept", ()):
        print(f"kept {item['job_id']}: {item['reason']}")
    if not any(document.values()):
        print("nothing is registered")


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))

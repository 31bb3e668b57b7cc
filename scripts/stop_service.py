"""Stop services and forget them: those named by --job-id, all, or the one started last once that is confirmed (seed 5).

A service that is already gone counts as stopped. One that could not be stopped stays registered: exit status 1 says
which, and why.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from inference_service import output


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
    arguments.add_argument("--yes", action="store_true", help="without --job-id and --all: stop the latest, do not ask")
    return arguments


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Stop them; which were stopped, and which were gone already."""
    from inference_service import lifecycle, rented_machines, stop_choice
    from inference_service.errors import ToolError
    from inference_service.registry import Registry

    registry = Registry()
    chosen = stop_choice.choose(registry, arguments.job_id, arguments.all, arguments.yes)
    entries = rented_machines.decided(chosen.entries, arguments.delete_instance)
    done = lifecycle.stop(entries, registry)
    document: dict[str, Any] = {
        "stopped": list(done.stopped),
        "failed": [dict(failure) for failure in done.failed],
        "already_gone": list(chosen.already_gone),
    }
    if done.failed:
        told = "; ".join(f"{failure['job_id']}: {failure['message']}" for failure in done.failed)
        fix = "stop_service.py " + " ".join(f"--job-id {failure['job_id']}" for failure in done.failed)
        raise ToolError(
            "not_stopped", f"could not be stopped, and still registered: {told}", f"mend that, then {fix}", **document
        )
    return document


def render(document: Any) -> None:
    """One line for each."""
    for job_id in document["stopped"]:
        print(f"stopped {job_id}")
    for job_id in document["already_gone"]:
        print(f"already gone {job_id}")
    if not document["stopped"] and not document["already_gone"]:
        print("nothing is registered")


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))

#!/usr/bin/env python3
"""Show or change the service registry: which inference services there are and where they answer.

registry.py list                    all services, how each is now, and the running one that was started last
registry.py show J                  one of them
registry.py list --offline          only what is registered: neither platforms nor services are asked
registry.py write …                 register a service that was started by other means
registry.py remove J                forget one, without stopping it (stop_service.py stops)
registry.py reconcile               compare with what the platforms run: adopt what is not registered, mark what is gone
registry.py reconcile --remove-gone the same, and forget what is gone
registry.py path                    where the registry's file is (TAO_INF_MS_STATE_FILE overrides)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from inference_service import output


def parser() -> output.ArgumentParser:
    """The command line."""
    top = output.ArgumentParser(description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listed = commands.add_parser("list", help="all services", description=f"All services.\n\n{_LIVE}")
    show = commands.add_parser("show", help="one service", description=f"One service.\n\n{_LIVE}")
    show.add_argument("job_id", metavar="J", help="its job_id, or the first 8 or more characters of it")
    for command in (listed, show):
        command.add_argument("--offline", action="store_true", help="ask nobody, only show what is registered")
    _add_write(commands.add_parser("write", help="register a service", description=_WRITE))
    remove = commands.add_parser("remove", help="forget a service", description=_REMOVE)
    remove.add_argument("job_id", metavar="J", help="its whole job_id")
    reconcile = commands.add_parser("reconcile", help="compare with what the platforms run", description=_RECONCILE)
    reconcile.add_argument("--remove-gone", action="store_true", help="forget services that are gone, do not only mark")
    commands.add_parser("path", help="where the file is", description="Where the registry's file is.")
    return top


_LIVE = """\
Each with its age, what its platform says of it (`state`), its idle minutes as it says itself, and what its GPUs have
cost so far where TAO_INF_PRICING names a file with their price (references/pricing.yaml says how). Platforms and
services have three seconds to answer, all at once; `state` is UNKNOWN where one did not."""
_WRITE = "Register a service that was started by other means, or change the registration of one."
_REMOVE = "Forget a service, without stopping it: what runs goes on running. stop_service.py stops it and forgets it."
_RECONCILE = """\
Compare the registry with what the platforms run. What runs and is not registered is adopted; what a crashed start left
is settled; what is registered and does not run any more is marked as gone. What runs on a platform
that cannot be asked stays as it is."""


def _add_write(write: argparse.ArgumentParser) -> None:
    write.add_argument("--job-id", required=True, metavar="J", help="its job_id: the container's name")
    write.add_argument("--network-arch", required=True, metavar="A", help="the network arch that it runs")
    write.add_argument("--platform", required=True, metavar="P", help="the platform that it runs on")
    write.add_argument("--host-url", required=True, metavar="URL", help="where it answers, like http://localhost:8080")
    write.add_argument(
        "--host-port", type=int, metavar="N", help="the port of this machine it holds (default: the URL's)"
    )
    write.add_argument("--platform-job-id", metavar="ID", help="the platform's own id of it")
    write.add_argument("--image", metavar="IMAGE", help="its container image")
    write.add_argument("--model-path", metavar="M", help="the model that it serves")


def main(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """The registry as the command leaves it, or the one service that it is about."""
    from inference_service import registry_commands

    return registry_commands.run(arguments)


def render(document: Mapping[str, Any]) -> None:
    """The document as a table."""
    from inference_service import registry_table

    registry_table.show(document)


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))

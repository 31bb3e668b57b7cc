"""Print a service's own log, secrets removed.

Piped, it is one document with `lines`; with --follow each line is a JSON document {"line"} of its own, until the
service ends. On a terminal the lines are printed as they are.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from inference_service import output


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = output.ArgumentParser(__doc__)
    add = arguments.add_argument
    add("--job-id", metavar="J", required=True, help="the service")
    add("--tail", metavar="N", type=int, default=200, help="the last N lines (default: %(default)s)")
    add("--follow", action="store_true", help="go on with each new line")
    return arguments


def main(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The log, or nothing once it has been streamed."""
    from inference_service import platforms, routing, secrets
    from inference_service.errors import BadInput
    from inference_service.registry import Registry

    if arguments.tail < 0:
        raise BadInput("bad_tail", f"--tail {arguments.tail} is not a number of lines", "give 0 or more")
    entry = routing.find(Registry().read(), arguments.job_id)
    lines = platforms.load(entry.platform).logs(entry, arguments.tail, arguments.follow)
    if sys.stdout.isatty() and not arguments.json:
        for line in lines:
            print(secrets.redact(line), flush=True)
        return None
    if arguments.follow:
        for line in lines:
            output.print_line({"line": line})
        return None
    return {"job_id": entry.job_id, "network_arch": entry.network_arch, "lines": list(lines)}


if __name__ == "__main__":
    sys.exit(output.run(parser(), main))

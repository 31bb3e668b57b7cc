#!/usr/bin/env python3
"""Who used what: requests, errors, tokens, latency and cost from the request log.

By default per caller, service and model, of all requests in the log, whether their service still runs or not. Latencies
are seconds over finished requests, from taking a request in hand to the end of its answer, waiting for the service
included; p50 and p95 by nearest rank. Times and days are UTC. A request whose cost is not known is counted as unpriced,
never as free; one without token counts as unmetered; one whose sender was killed as unfinished. The log is
TAO_INF_REQUEST_LOG, or requests.db in your state directory.
"""

from __future__ import annotations

import argparse
import sys

from inference_service import output
from inference_service.errors import BadInput


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = output.ArgumentParser(__doc__ or "")
    options.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="DIMENSION",
        help="caller, service, model or day; several separated by commas or by repeating it",
    )
    options.add_argument("--since", metavar="T", help="only requests since then: 30m, 24h, 7d, or ISO 8601")
    options.add_argument(
        "--format", choices=("table", "csv", "json"), help="default: a table on a terminal, JSON elsewhere"
    )
    return options


def main(arguments: argparse.Namespace) -> output.Document | None:
    """The usage report; None once it has been printed in the format that was asked for."""
    from datetime import datetime, timezone

    from inference_service import paths
    from inference_service.request_log import rendering, report

    if arguments.json and arguments.format in ("table", "csv"):
        raise BadInput("usage", f"--json and --format {arguments.format} exclude each other", "give one of them")
    since = report.moment(arguments.since, datetime.now(timezone.utc)) if arguments.since is not None else None
    document = report.usage(paths.request_log_file(), report.dimensions(arguments.by), since).document()
    if not document["totals"]["requests"]:
        output.note(f"no requests are logged in {document['log']}" + (f" since {document['since']}" if since else ""))
    if arguments.format == "table":
        rendering.table(document, sys.stdout)
    elif arguments.format == "csv":
        sys.stdout.write(rendering.as_csv(document))
    elif arguments.format == "json":
        output.print_line(document)
    else:
        return document
    return None


def render(document: output.Document) -> None:
    """The report for a person at a terminal."""
    from inference_service.request_log import rendering

    rendering.table(document, sys.stdout)


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))

#!/usr/bin/env python3
"""Who used what: requests, errors, tokens, latency and cost from the request log.

usage_report.py                             per caller, service and model, of all requests in the log
usage_report.py --by team,day --since 30d   other groups, only since then
usage_report.py reconcile-invoice FILE.csv  per day and model: what we say, what a vendor says, the difference
usage_report.py forget --older-than 90d     delete old requests

Whether a service still runs or not makes no difference. Latencies are seconds over finished requests, from taking a
request in hand to the end of its answer, waiting for the service included; percentiles by nearest rank. Times and days
are UTC. A request whose cost is not known is counted as unpriced, never as free; one without token counts as unmetered;
one whose sender was killed as unfinished. With --by tag a request with several tags is in the group of each. The log is
--database, or TAO_GATEWAY_DATABASE, or TAO_INF_REQUEST_LOG, or requests.db in your state directory.
"""

from __future__ import annotations

import argparse
import sys

from inference_service import output


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = output.ArgumentParser(__doc__ or "")
    options.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="DIMENSION",
        help="caller, team, project, service, model, tag, route, platform, error_type, day or hour; several separated"
        " by commas or by repeating it",
    )
    options.add_argument("--since", metavar="T", help="only requests since then: 30m, 24h, 7d, or ISO 8601")
    options.add_argument(
        "--format", choices=("table", "csv", "json"), help="default: a table on a terminal, JSON elsewhere"
    )
    _add_database(options, None)
    commands = options.add_subparsers(dest="command", metavar="COMMAND")
    reconcile = commands.add_parser("reconcile-invoice", help="compare with a vendor's CSV", description=_RECONCILE)
    reconcile.add_argument("file", metavar="FILE.csv", help="the vendor's export of usage or cost")
    reconcile.add_argument("--vendor", default="anthropic", metavar="V", help="whose it is (default: anthropic)")
    reconcile.add_argument(
        "--tolerance",
        default="0.01",
        metavar="T",
        help="how far a line may be off: USD like 0.05, or 0.5%% of the vendor's amount (default: 0.01)",
    )
    forget = commands.add_parser("forget", help="delete old requests", description=_FORGET)
    forget.add_argument("--older-than", metavar="T", help="requests from before then: 90d, or ISO 8601")
    forget.add_argument("--bodies-older-than", metavar="T", help="stored bodies from before then, of whatever request")
    forget.add_argument("--dry-run", action="store_true", help="only count them")
    for command in (reconcile, forget):
        # What was given before the command is not overwritten.
        _add_database(command, argparse.SUPPRESS)
    return options


_RECONCILE = """\
Compare the log with a vendor's CSV, per day (UTC) and model, for the days that are in the file: what we say, what they
say, the difference. Costs are compared where the file has them, else tokens. `matches` says whether all of it is within
the tolerance; a difference is a result, not a failure, so the exit status is 0 either way. The columns that are known
are in references/invoice.yaml."""
_FORGET = """\
Delete old requests, or only their stored bodies, some at a time, so that gateways go on writing. What is deleted is
gone: --dry-run counts first. SQLite gives the room to new requests, not back to the disk."""


def _add_database(command: argparse.ArgumentParser, default: str | None) -> None:
    command.add_argument(
        "--database", metavar="URL", default=default, help="sqlite:///FILE or postgresql://… without a password"
    )


def main(arguments: argparse.Namespace) -> output.Document | None:
    """The report, the comparison or what was forgotten; None once it has been printed as it was asked for."""
    from inference_service.request_log import report_commands

    return report_commands.run(arguments)


def render(document: output.Document) -> None:
    """The document for a person at a terminal."""
    from inference_service.request_log import report_commands

    report_commands.render(document)


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))

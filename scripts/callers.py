#!/usr/bin/env python3
"""Who may use the gateway: make API keys for callers, give them limits, take them away.

callers.py add NAME                 a new caller; its key is in `api_key`, shown this once and stored nowhere
callers.py list                     all callers with their limits
callers.py rotate NAME              a new key; the old one ends at once, or after --grace 24h
callers.py disable NAME             refuse its keys until `enable`
callers.py remove NAME              forget it and its keys; the rows of its requests stay
callers.py limits NAME …            change its limits: --usd-per-day 5, --requests-per-minute none

Running gateways follow within a second. They keep the limits together, however many there are: what a request can cost
at most is set aside before it is sent. Minutes, days and months are those of UTC. The database is --database, or
TAO_GATEWAY_DATABASE, or your request log's file.
"""

from __future__ import annotations

import argparse
import sys

from inference_service import output


def parser() -> output.ArgumentParser:
    """The command line."""
    top = output.ArgumentParser(description=__doc__ or "")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="make a caller and its key", description=_ADD)
    limits = commands.add_parser("limits", help="change a caller's limits", description=_LIMITS)
    rotate = commands.add_parser("rotate", help="give a caller a new key", description=_ROTATE)
    others = [
        commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in (
            ("list", "all callers with their limits"),
            ("disable", "refuse a caller's keys until it is enabled again"),
            ("enable", "take a disabled caller's keys again"),
            ("remove", "forget a caller and its keys; the rows of its requests stay"),
        )
    ]
    add.add_argument("--team", metavar="T", help="whom it belongs to, for reports")
    add.add_argument("--project", metavar="P", help="what it is for, for reports")
    add.add_argument("--admin", action="store_true", help="may also see the dashboard and the metrics")
    rotate.add_argument("--grace", metavar="D", help="how long its old keys still work, like 24h (default: not at all)")
    for command in (add, limits):
        _add_limits(command)
    for command in (add, limits, rotate, *others):
        command.add_argument("--database", metavar="URL", help="sqlite:///FILE or postgresql://… without a password")
        if command is not others[0]:
            command.add_argument("name", metavar="NAME", help="the caller's name")
    return top


_ADD = "Make a caller and its key, which is shown this once and stored nowhere."
_LIMITS = "Change some of a caller's limits; the others stay as they are. `none` takes a limit away."
_ROTATE = "Give a caller a new key, which is shown this once and stored nowhere."


def _add_limits(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "limits",
        "none: without that limit. Dollars count what has a price (TAO_INF_PRICING): what has none costs no budget",
    )
    group.add_argument("--requests-per-minute", metavar="N")
    group.add_argument("--tokens-per-minute", metavar="N", help="what goes in and what may come out")
    group.add_argument("--usd-per-day", metavar="X")
    group.add_argument("--usd-per-month", metavar="X")
    group.add_argument(
        "--allow-model", action="append", metavar="M", help="only this model (model id, job_id or network arch) …"
    )
    group.add_argument("--allow-any-model", action="store_true", help="all of them (the default of add)")


def main(arguments: argparse.Namespace) -> output.Document:
    """The callers that the command was about."""
    from inference_service.callers import commands

    return commands.run(arguments)


def render(document: output.Document) -> None:
    """The document as a table."""
    from inference_service.callers import table

    table.show(document)


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))

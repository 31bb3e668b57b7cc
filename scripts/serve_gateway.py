#!/usr/bin/env python3
"""Serve Claude and every running service behind one address: OpenAI's and Anthropic's API, keys, limits, costs.

Prints one JSON line with its `url`, and with what either vendor's SDK wants as base URL, once it serves; runs until
Ctrl-C or TERM. With ANTHROPIC_API_KEY set it serves Claude; services are taken from the registry, those started later
too. Callers' keys are made by callers.py; the dashboard (/dashboard) and /metrics want the key in
TAO_GATEWAY_ADMIN_KEY, or one made by callers.py add --admin. Every request leaves a row in the database:
usage_report.py. PostgreSQL (TAO_GATEWAY_DATABASE=postgresql://…) is for several gateways that share keys, limits and
budgets.
"""

from __future__ import annotations

import argparse
import sys

from inference_service import output


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = output.ArgumentParser(__doc__ or "")
    options.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    options.add_argument("--port", type=int, default=4000, help="port to listen on, 0 for any free one (default: 4000)")
    options.add_argument("--workers", type=int, default=1, metavar="N", help="processes on the port (default: 1)")
    options.add_argument("--no-auth", action="store_true", help="let in whoever is on this machine, without keys")
    options.add_argument(
        "--database",
        metavar="URL",
        help="sqlite:///FILE or postgresql://… without a password (default: TAO_GATEWAY_DATABASE, or requests.db)",
    )
    options.add_argument(
        "--log-bodies", action="store_true", help="keep what was asked and answered, cut to size and without secrets"
    )
    options.add_argument("--json-log", action="store_true", help="one JSON line per request on standard error")
    options.add_argument(
        "--drain", type=float, default=60.0, metavar="S", help="seconds for running answers at the end (default: 60)"
    )
    return options


def main(arguments: argparse.Namespace) -> None:
    """Serve until told to end."""
    import dataclasses
    import os

    from inference_service import sql
    from inference_service.errors import ToolError
    from inference_service.gateway import launching, settings

    found = settings.of_environment()
    database = found.database
    if arguments.database:
        database = sql.refuse_password(arguments.database, "--database", settings.DATABASE_ENV)
    status = launching.serve(
        dataclasses.replace(
            found,
            host=arguments.host,
            port=arguments.port,
            workers=arguments.workers,
            no_auth=arguments.no_auth,
            log_bodies=arguments.log_bodies,
            json_log=arguments.json_log,
            drain_seconds=arguments.drain,
            database=database,
        ),
        lambda url, port: output.print_line(
            {
                "url": url,
                "openai_base_url": f"{url}/v1",
                "anthropic_base_url": url,
                "port": port,
                "pid": os.getpid(),
            }
        ),
    )
    if status:
        raise ToolError("worker_failed", "a worker process could not serve", "see the lines above on standard error")


if __name__ == "__main__":
    sys.exit(output.run(parser(), main))

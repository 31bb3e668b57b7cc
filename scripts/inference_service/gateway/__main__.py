"""Starts the gateway as a service: python3 -m inference_service.gateway --job JSON --docker_env_vars JSON

The command line of the TAO microservices. The Claude model that the job names must exist for the service to be ready;
the other models of the key, and the services of the registry, are served besides. SIGTERM or Ctrl-C ends it, status 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from inference_service.errors import ToolError
from inference_service.microservices import command_line

_SCHEME = "://"


def parser() -> argparse.ArgumentParser:
    """The command line of the TAO microservices, and where to listen."""
    parser = command_line.parser("gateway", __doc__ or "")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port (default: 1)")
    parser.add_argument("--notice", type=float, default=0.0, help="seconds not ready before the port closes at the end")
    parser.add_argument("--drain", type=float, default=60.0, help="seconds that running answers get at the end")
    return parser


def main() -> int:
    """Serve until told to end; the exit status."""
    # Every arch's inner command starts with `umask 0`, but what this service keeps is nobody else's to read.
    os.umask(0o077)
    arguments = parser().parse_args()
    job = command_line.taken(arguments)

    from inference_service.gateway import launching, settings

    try:
        return launching.serve(
            replace(
                settings.of_environment(),
                host=arguments.host,
                port=arguments.port,
                workers=arguments.workers,
                job_id=job.job_id,
                model=job.model_path.partition(_SCHEME)[2] or job.model_path,
                notice_seconds=arguments.notice,
                drain_seconds=arguments.drain,
            ),
            lambda url, port: print(f"listening on {url}", file=sys.stderr, flush=True),
        )
    except ToolError as error:
        print(f"gateway: {error.message}; {error.fix}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

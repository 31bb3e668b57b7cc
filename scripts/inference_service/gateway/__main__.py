"""Starts the gateway as a service: python3 -m inference_service.gateway --job JSON --docker_env_vars JSON

The command line of the TAO microservices. The Claude model that the job names must exist for the service to be ready;
the other models of the key, and the services of the registry, are served besides. SIGTERM or Ctrl-C ends it, status 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from typing import Any

from inference_service.errors import ToolError

_SCHEME = "://"


def parser() -> argparse.ArgumentParser:
    """The command line of the TAO microservices, and where to listen."""
    parser = argparse.ArgumentParser(
        prog="gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", type=_object, default={}, metavar="JSON", help="job_id and specs.model_path")
    parser.add_argument(
        "--docker_env_vars", type=_object, default={}, metavar="JSON", help="variables to set (texts by name)"
    )
    host, port = os.environ.get("TAO_INF_MS_HOST", "127.0.0.1"), os.environ.get("TAO_INF_MS_PORT", "8080")
    parser.add_argument("--host", default=host, help="address to listen on (TAO_INF_MS_HOST, else 127.0.0.1)")
    parser.add_argument("--port", type=int, default=port, help="port to listen on (TAO_INF_MS_PORT, else 8080)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port (default: 1)")
    parser.add_argument("--notice", type=float, default=0.0, help="seconds not ready before the port closes at the end")
    parser.add_argument("--drain", type=float, default=60.0, help="seconds that running answers get at the end")
    return parser


def main() -> int:
    """Serve until told to end; the exit status."""
    # Every arch's inner command starts with `umask 0`, but what this service keeps is nobody else's to read.
    os.umask(0o077)
    arguments = parser().parse_args()
    os.environ.update({name: str(value) for name, value in arguments.docker_env_vars.items()})
    specs = arguments.job.get("specs")
    model_path = str(specs.get("model_path", "")) if isinstance(specs, dict) else ""

    from inference_service.gateway import launching, settings

    try:
        return launching.serve(
            replace(
                settings.of_environment(),
                host=arguments.host,
                port=arguments.port,
                workers=arguments.workers,
                job_id=str(arguments.job.get("job_id") or os.environ.get("TAO_API_JOB_ID", "")),
                model=model_path.partition(_SCHEME)[2] or model_path,
                notice_seconds=arguments.notice,
                drain_seconds=arguments.drain,
            ),
            lambda url, port: print(f"listening on {url}", file=sys.stderr, flush=True),
        )
    except ToolError as error:
        print(f"gateway: {error.message}; {error.fix}", file=sys.stderr)
        return 1


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


if __name__ == "__main__":
    sys.exit(main())

"""The command line that every microservice has, TAO's as well as ours: --job JSON --docker_env_vars JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What a service is started for; texts are empty where nothing was said."""

    job_id: str
    model_path: str


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options that all have, and where to listen (TAO_INF_MS_HOST and TAO_INF_MS_PORT unless said otherwise)."""
    parser = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", type=_object, required=True, metavar="JSON", help="job_id and specs.model_path")
    parser.add_argument(
        "--docker_env_vars", type=_object, default={}, metavar="JSON", help="variables to set (texts by name)"
    )
    host, port = os.environ.get("TAO_INF_MS_HOST", "127.0.0.1"), os.environ.get("TAO_INF_MS_PORT", "8080")
    parser.add_argument("--host", default=host, help="address to listen on (TAO_INF_MS_HOST, else 127.0.0.1)")
    parser.add_argument("--port", type=int, default=port, help="port to listen on (TAO_INF_MS_PORT, else 8080)")
    return parser


def taken(arguments: argparse.Namespace) -> Job:
    """Set the variables that the command line carries; the job."""
    os.environ.update({name: str(value) for name, value in arguments.docker_env_vars.items()})
    job: Mapping[str, Any] = arguments.job
    specs = job.get("specs")
    return Job(
        job_id=str(job.get("job_id") or os.environ.get("TAO_API_JOB_ID", "")),
        model_path=str(specs.get("model_path", "")) if isinstance(specs, dict) else "",
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value

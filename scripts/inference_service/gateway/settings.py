"""How one gateway runs: what its command line and its environment say."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference_service import paths
from inference_service.errors import BadInput

DATABASE_ENV = "TAO_GATEWAY_DATABASE"
ADMIN_KEY_ENV = "TAO_GATEWAY_ADMIN_KEY"
OWNER_KEY_ENV = "TAO_GATEWAY_CALLER_KEY"
UPSTREAM_KEY_ENV = "ANTHROPIC_API_KEY"
UPSTREAM_URL_ENV = "ANTHROPIC_BASE_URL"

_SHORTEST_KEY = 16


@dataclass(frozen=True)
class Settings:
    """`database` is a URL (sqlite:///… or postgresql://…). `model` is the Claude model that this gateway was started
    for as a service, and `job_id` the service's; both empty otherwise. Keys never show in a representation.

    Raises:
        BadInput: a number is none that can be served with.
    """

    host: str = "127.0.0.1"
    port: int = 0
    workers: int = 1
    no_auth: bool = False
    log_bodies: bool = False
    json_log: bool = False
    database: str = ""
    state_directory: Path = field(default_factory=paths.state_directory)
    # Where workers leave each other their figures; None for a single one.
    run_directory: Path | None = None
    job_id: str = ""
    model: str = ""
    # A stream that is under way when TERM comes may go on for so long; seconds.
    drain_seconds: float = 60.0
    # Readiness is false for so long before the socket closes, so that a load balancer has looked away; seconds.
    notice_seconds: float = 0.0
    admin_key: str = field(default="", repr=False)
    owner_key: str = field(default="", repr=False)
    upstream_key: str = field(default="", repr=False)
    upstream_url: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise BadInput("bad_port", f"--port {self.port} is not a port", "use 1 to 65535, or 0 for any that is free")
        if self.workers < 1:
            raise BadInput("usage", f"--workers {self.workers} is no number of processes", "give 1 or more")
        for option, seconds in (("--drain", self.drain_seconds), ("--notice", self.notice_seconds)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise BadInput("bad_seconds", f"{option} {seconds:g} is no number of seconds", "give 0 or more")


def of_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """What the environment says, secrets, URLs and places; the rest at its defaults.

    Raises:
        BadInput: a key is too short to be one.
    """
    for name in (ADMIN_KEY_ENV, OWNER_KEY_ENV):
        if environ.get(name) and len(environ[name]) < _SHORTEST_KEY:
            raise BadInput(
                "key_too_short",
                f"{name} has fewer than {_SHORTEST_KEY} characters",
                f"export {name}=$(openssl rand -hex 24)",
            )
    return Settings(
        database=environ.get(DATABASE_ENV) or f"sqlite:///{paths.request_log_file(environ).absolute()}",
        admin_key=environ.get(ADMIN_KEY_ENV, ""),
        owner_key=environ.get(OWNER_KEY_ENV, ""),
        upstream_key=environ.get(UPSTREAM_KEY_ENV, "").strip(),
        upstream_url=environ.get(UPSTREAM_URL_ENV, "").rstrip("/"),
    )

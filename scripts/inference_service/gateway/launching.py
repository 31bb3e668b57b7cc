"""From settings to a gateway that serves: what serve_gateway.py and the service's inner command have in common."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from inference_service.errors import ToolError
from inference_service.gateway import server, workers
from inference_service.gateway.run_folder import run_folder
from inference_service.gateway.settings import Settings


def serve(settings: Settings, announce: Callable[[str, int], None]) -> int:
    """Serve until told to end; the exit status. `announce` gets the URL and the port once requests are taken.

    Raises:
        BadInput: the settings would let strangers in.
        ToolError: the port cannot be had, or a file that is needed cannot be used.
    """
    server.require_safe(settings)
    _log_to_standard_error()
    _allow_many_connections()
    several = settings.workers > 1
    sock = server.listen(settings.host, settings.port, shared=several)
    settings = replace(settings, port=workers.port_of(sock))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host

    def tell() -> None:
        announce(f"http://{host}:{settings.port}", settings.port)

    if not several:
        server.run(settings, sock, tell)
        return 0

    def work(alive: int, ready: Callable[[], None]) -> None:
        own = server.listen(settings.host, settings.port, shared=True)
        server.run(settings, own, ready, ends_with=alive)

    # This socket only keeps the port: connections go to those who listen.
    with contextlib.ExitStack() as until_the_end:
        settings = replace(settings, run_directory=_shared_folder(settings.state_directory, until_the_end))
        return workers.supervise(settings.workers, work, tell)


def _shared_folder(state_directory: Path, until_the_end: contextlib.ExitStack) -> Path:
    try:
        return until_the_end.enter_context(run_folder(state_directory))
    except OSError as error:
        raise ToolError(
            "state_unusable",
            f"{state_directory} cannot be written, where workers leave each other their figures: {error.strerror}",
            "export XDG_STATE_HOME=/a/folder/you/can/write, or serve with --workers 1",
        ) from error


def _allow_many_connections() -> None:
    """Each request holds two descriptors, and the usual soft limit of 1024 would be reached by 500 streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s gateway[%(process)d] %(levelname)s %(message)s"))
    log = logging.getLogger("gateway")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    # uvicorn's words on malformed requests and on failures of the application.
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).propagate = False

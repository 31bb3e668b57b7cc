"""Runs the gateway: opens its port, keeps it up to date, and ends it in good order.

On TERM readiness turns false first. Then the port closes, what is under way goes on until the deadline, rows reach the
database and leases are given back. Several workers share one port: the kernel deals out the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable
from time import perf_counter

from uvicorn.config import Config
from uvicorn.server import ServerState

from inference_service.errors import BadInput, ToolError
from inference_service.gateway.assembly import Parts, assemble
from inference_service.gateway.protocol import Protocol
from inference_service.gateway.settings import Settings

log = logging.getLogger("gateway")

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
_LOOK_EVERY_SECONDS = 1.0
_LAST_WORDS_SECONDS = 5.0
# Requests leave few cycles behind: the youngest are looked through every 20,000 objects instead of every 700.
_GARBAGE_THRESHOLDS = (20_000, 20, 20)


def listen(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket bound there, not listening yet; `shared` with other processes that bind it the same way.

    Raises:
        BadInput: there is no such host.
        ToolError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except socket.gaierror as error:
        sock.close()
        raise BadInput(
            "unknown_host", f"--host {host} is no address of this machine: {error.strerror}", "use 127.0.0.1, for one"
        ) from error
    except OSError as error:
        sock.close()
        raise ToolError(
            "port_taken",
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "choose another --port, or 0 for any that is free",
        ) from error
    return sock


def require_safe(settings: Settings) -> None:
    """Refuse to serve without keys where others could reach it.

    Raises:
        BadInput: --no-auth on an address that is not this machine's alone.
    """
    if settings.no_auth and settings.host not in ("127.0.0.1", "::1", "localhost"):
        raise BadInput(
            "no_auth_in_public",
            f"--no-auth lets everybody in who reaches {settings.host}",
            "use it with --host 127.0.0.1 alone, and make keys elsewhere: callers.py add NAME",
        )


def run(settings: Settings, sock: socket.socket, announce: Callable[[], None], *, ends_with: int | None = None) -> None:
    """Serve on the socket until TERM or Ctrl-C, or until the descriptor `ends_with` reads as ended. `announce` is
    called once requests are taken."""
    import uvloop

    uvloop.run(_serve(settings, sock, announce, ends_with))


async def _serve(settings: Settings, sock: socket.socket, announce: Callable[[], None], ends_with: int | None) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    if ends_with is None:
        loop.add_signal_handler(signal.SIGINT, ending.set)
    else:
        loop.add_reader(ends_with, ending.set)
    parts = assemble(settings)
    gateway = parts.gateway
    config = Config(
        gateway,
        interface="asgi3",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    config.load()
    state = ServerState()
    server = await loop.create_server(lambda: Protocol(config, state, {}, loop), sock=sock, backlog=_BACKLOG)
    await parts.begin()
    tasks = [asyncio.create_task(_lookout(parts, state)), *map(asyncio.create_task, parts.work())]
    # What is there now stays; looking through it again and again would be for nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    announce()
    await ending.wait()
    if ends_with is not None:
        loop.remove_reader(ends_with)
    log.info("ending: no new connections, %d requests under way", len(gateway.live))
    gateway.draining = True
    await asyncio.sleep(settings.notice_seconds)
    server.close()
    await _drain(state, settings.drain_seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await parts.close()
    log.info("ended")


async def _lookout(parts: Parts, state: ServerState) -> None:
    """Once a second: what has changed on disk, who has stalled."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
        try:
            parts.reloading.look()
        except Exception:
            # Whatever it was, what was loaded before goes on serving.
            log.exception("reloading failed")
        now = perf_counter()
        for connection in [*state.connections]:
            if isinstance(connection, Protocol):
                connection.close_if_stalled(now)


async def _drain(state: ServerState, seconds: float) -> None:
    """Let what is under way finish, then cut it; idle connections are closed at once."""
    for connection in [*state.connections]:
        connection.shutdown()
    deadline = perf_counter() + seconds
    while state.tasks and perf_counter() < deadline:
        await asyncio.wait([*state.tasks], timeout=min(1.0, max(0.0, deadline - perf_counter())))
    if state.tasks:
        log.warning("%d requests were still under way after %.0f s and are cut", len(state.tasks), seconds)
        for task in [*state.tasks]:
            task.cancel()
        await asyncio.wait([*state.tasks], timeout=_LAST_WORDS_SECONDS)
    for connection in [*state.connections]:
        with contextlib.suppress(Exception):
            connection.transport.close()
    # The transports' last bytes and closings.
    await asyncio.sleep(0)

"""Several gateway processes on one port: the kernel deals the connections out, this process keeps the workers alive.

A worker that dies is replaced. When this process is told to end, so are they; when it is killed, they notice and end.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

log = logging.getLogger("gateway")

_SHORT_LIFE_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 5.0

Serve = Callable[[int, Callable[[], None]], None]
"""Serves until told to end: gets a descriptor that ends when the parent is gone, and what to call when it is ready."""


def supervise(count: int, serve: Serve, announce: Callable[[], None]) -> int:
    """Run `count` workers until TERM or Ctrl-C; returns the exit status. `announce` is called once all are ready.

    A worker that ends before all were ready ends everything: the others would not do better. Later it is replaced.
    """
    alive_read, alive_write = os.pipe()
    ready_read, ready_write = os.pipe()
    born: dict[int, float] = {}
    ending = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal ending
        ending = True
        for pid in born:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)

    def start() -> None:
        pid = os.fork()
        if pid == 0:
            os.close(alive_write)
            _work(serve, alive_read, ready_write)
        born[pid] = time.monotonic()

    for _ in range(count):
        start()
    status = 0
    waiting_for = count
    # When those that died are replaced: one that dies as soon as it lives is not to take the processor from the others.
    due: list[float] = []
    pause = 0.0
    os.set_blocking(ready_read, False)
    while born or (due and not ending):
        if waiting_for and not ending:
            waiting_for -= _readiness_told(ready_read)
            if not waiting_for:
                announce()
        now = time.monotonic()
        while due and due[0] <= now and not ending:
            due.pop(0)
            start()
        pid, code = os.waitpid(-1, os.WNOHANG) if born else (0, 0)
        if pid == 0:
            # Looked at often while they start, as nobody may send anything before all are ready.
            time.sleep(0.01 if waiting_for else 0.1)
            continue
        lived = now - born.pop(pid)
        if ending:
            continue
        log.error("worker %d ended (status %d)", pid, os.waitstatus_to_exitcode(code))
        if waiting_for:
            status = 1
            end(0, None)
            continue
        pause = min(2 * pause + 0.1, _LONGEST_PAUSE_SECONDS) if lived < _SHORT_LIFE_SECONDS else 0.0
        due.append(now + pause)
    return status


def _readiness_told(descriptor: int) -> int:
    try:
        return len(os.read(descriptor, 64))
    except BlockingIOError:
        return 0


def _work(serve: Serve, alive: int, ready: int) -> None:
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def tell() -> None:
            os.write(ready, b".")

        serve(alive, tell)
        status = 0
    except BaseException as error:
        print(f"gateway worker: {error}", file=sys.stderr, flush=True)
    finally:
        # Not sys.exit: what the parent has open and registered is the parent's to close.
        os._exit(status)


def port_of(sock: socket.socket) -> int:
    """The port that a bound socket has."""
    port: int = sock.getsockname()[1]
    return port

"""Making one connection: name, addresses one after another, TLS; within one time limit, with an error that says where.

A connection attempt that is given up, by time or by cancellation, leaves nothing open: what it still brings
about is closed when it appears.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from inference_service.gateway.upstream.connection import Connection
from inference_service.gateway.upstream.errors import ConnectFailed
from inference_service.gateway.upstream.origin import Origin

T = TypeVar("T")

KEEPALIVE_SECONDS = 60  # a model may think for minutes; that its machine is gone should be known before that


async def connect(
    make: Callable[[], Connection], origin: Origin, tls: ssl.SSLContext | None, timeout: float
) -> Connection:
    """A connected connection. Raises ConnectFailed; `timeout` (seconds) is for all of it."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    deadline = began + timeout
    try:
        addresses = await _in_time(
            loop.create_task(_addresses(loop, origin)), timeout, f"{origin.host} was not resolved"
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
        raise ConnectFailed(f"cannot connect to {origin}: the name is not known ({_reason(error)})") from error
    failure: Exception = OSError("the name has no address")
    for index, address in enumerate(addresses):
        # An address that swallows packets must not use up the time of those behind it.
        share = (deadline - time.perf_counter()) / (len(addresses) - index)
        connection = make()
        attempt = loop.create_task(_open(loop, connection, origin, address, tls))
        try:
            await _in_time(attempt, max(share, 0.0), f"{address} did not answer")
        except (OSError, ValueError) as error:  # ValueError: ssl.CertificateError of a malformed name
            connection.drop()
            failure = error
        except BaseException:
            connection.drop()
            raise
        else:
            connection.connect_seconds = time.perf_counter() - began
            return connection
    raise ConnectFailed(f"cannot connect to {origin}: {_reason(failure)}") from failure


async def _addresses(loop: asyncio.AbstractEventLoop, origin: Origin) -> list[str]:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(origin.host)
        return [origin.host]  # no need for a thread that asks the resolver
    found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def _open(
    loop: asyncio.AbstractEventLoop, connection: Connection, origin: Origin, address: str, tls: ssl.SSLContext | None
) -> None:
    if tls is None:
        await loop.create_connection(lambda: connection, address, origin.port)
    else:
        await loop.create_connection(
            lambda: connection, address, origin.port, ssl=tls, server_hostname=origin.host.partition("%")[0]
        )
    wire = connection.transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)


async def _in_time(task: asyncio.Task[T], timeout: float, otherwise: str) -> T:
    # asyncio.wait_for may, before Python 3.12, lose the result of a task that ends while it is being cancelled.
    try:
        done, _ = await asyncio.wait((task,), timeout=timeout)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if not done:
        _abandon(task)
        raise TimeoutError(f"{otherwise} within {timeout:.2g} s")
    return task.result()


def _abandon(task: asyncio.Task[T]) -> None:
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # so that asyncio does not complain


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed ({error.reason or error})"
    if isinstance(error, OSError) and error.errno and error.errno > 0 and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)  # asyncio and uvloop word it differently
    return str(error) or type(error).__name__

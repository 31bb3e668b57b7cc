"""Which port of this machine a service gets (seed 4.2): the lowest that no entry holds and that can be bound.

The registry alone does not tell: a stranger's program may listen there. The system alone does not tell either: a
service that is being started holds its port before it listens. So a port has to pass both.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection, Iterable, Mapping

from inference_service.errors import BadInput, ToolError

_IPV6_LOOPBACK = "::1"


def lowest_free(ports: Iterable[int], held: Collection[int], bind_address: str) -> int:
    """The first of `ports` that is not in `held` and that nothing listens on.

    Raises:
        ToolError: there is none.
        BadInput: this machine does not have the address `bind_address`.
    """
    for port in ports:
        if port not in held and can_bind(port, bind_address):
            return port
    raise ToolError(
        "no_free_port",
        "every port of the range is in use",
        "stop a service: stop_service.py --job-id J",
        held=len(held),
    )


def require_free(port: int, holders: Mapping[int, str], bind_address: str) -> int:
    """The port that the user asked for, when it is free; `holders` maps each held port to its job_id.

    Raises:
        BadInput: the message says who holds it.
    """
    if not 1 <= port <= 65535:
        raise BadInput("bad_port", f"{port} is not a port", "choose one from 1 to 65535, or leave --host-port out")
    if port in holders:
        raise BadInput(
            "port_in_use",
            f"port {port} is held by the service {holders[port]}",
            f"leave --host-port out, choose another, or free it: stop_service.py --job-id {holders[port]}",
            held_by=holders[port],
        )
    if not can_bind(port, bind_address):
        raise BadInput(
            "port_in_use",
            f"port {port} is used by another program of this machine",
            "leave --host-port out, or choose another",
            held_by=None,
        )
    return port


def can_bind(port: int, bind_address: str) -> bool:
    """Whether a server could listen there now, and nothing else would answer in its place.

    A service on this machine is called by the name `localhost`, which clients may take for IPv6: so ::1 must be free
    too.

    Raises:
        BadInput: this machine does not have the address `bind_address`, or the port is a privileged one.
    """
    return _binds(port, bind_address) and (bind_address == _IPV6_LOOPBACK or _ipv6_loopback_is_free(port))


def _binds(port: int, address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            # As servers do: connections that linger in TIME_WAIT do not keep a port from being listened on.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            return True
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno == errno.EACCES:
            raise BadInput(
                "port_not_allowed", f"this user may not listen on port {port}", "choose a port from 1024 on"
            ) from error
        raise BadInput(
            "bind_address_unusable",
            f"cannot listen on {address}: {error.strerror or error}",
            "use 127.0.0.1 or 0.0.0.0",
        ) from error


def _ipv6_loopback_is_free(port: int) -> bool:
    try:
        return _binds(port, _IPV6_LOOPBACK)
    except BadInput:
        return True  # No IPv6 on this machine: nobody can be reached there.

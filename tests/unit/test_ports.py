"""A port is free only when no entry holds it and a server could listen on it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from inference_service import ports
from inference_service.errors import BadInput, ToolError


@contextlib.contextmanager
def listening(address: str, family: int = socket.AF_INET) -> Iterator[int]:
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            server.bind((address, 0))
        except OSError as error:
            pytest.skip(f"this machine cannot listen on {address}: {error}")
        server.listen()
        yield int(server.getsockname()[1])


@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("bind_address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_on_which_somebody_listens_is_not_free(listener: str, bind_address: str) -> None:
    with listening(listener) as port:
        assert not ports.can_bind(port, bind_address)
    assert ports.can_bind(port, bind_address)


def test_a_port_on_which_somebody_listens_by_ipv6_alone_is_not_free() -> None:
    with listening("::1", socket.AF_INET6) as port:
        assert not ports.can_bind(port, "127.0.0.1"), "http://localhost may reach the stranger"


def test_connections_in_time_wait_do_not_keep_a_port() -> None:
    with listening("127.0.0.1") as port, contextlib.closing(socket.socket()) as client:
        client.connect(("127.0.0.1", port))
        with contextlib.closing(socket.socket()) as strict, pytest.raises(OSError):
            strict.bind(("127.0.0.1", port))
    assert ports.can_bind(port, "127.0.0.1")


def test_the_lowest_port_that_nobody_holds_and_nobody_uses_is_chosen() -> None:
    with listening("127.0.0.1") as used:
        held, free = used + 1, used + 2
        while not ports.can_bind(free, "127.0.0.1"):
            free += 1
        assert ports.lowest_free([used, held, free], {held}, "127.0.0.1") == free


def test_a_full_range_is_an_error_that_says_so() -> None:
    with pytest.raises(ToolError) as raised:
        ports.lowest_free([8080, 8081], {8080, 8081}, "127.0.0.1")
    assert raised.value.type == "no_free_port"


def test_a_port_that_was_asked_for_is_refused_with_its_holder() -> None:
    with pytest.raises(BadInput) as raised:
        ports.require_free(8080, {8080: "job-1"}, "127.0.0.1")
    assert raised.value.type == "port_in_use"
    assert "job-1" in raised.value.message
    assert raised.value.details["held_by"] == "job-1"


def test_a_port_that_was_asked_for_and_a_stranger_uses_is_refused() -> None:
    with listening("127.0.0.1") as port, pytest.raises(BadInput) as raised:
        ports.require_free(port, {}, "127.0.0.1")
    assert raised.value.type == "port_in_use"
    assert "another program" in raised.value.message


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(BadInput, match="not a port"):
        ports.require_free(port, {}, "127.0.0.1")


@pytest.mark.parametrize("address", ["192.0.2.1", "not an address"])
def test_an_address_that_this_machine_has_not_is_refused(address: str) -> None:
    with pytest.raises(BadInput) as raised:
        ports.can_bind(20000, address)
    assert raised.value.type == "bind_address_unusable"
    assert address in raised.value.message

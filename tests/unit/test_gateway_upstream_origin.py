"""Origins, header blocks and request lines: what may be sent, and that nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.gateway.upstream.origin import (
    OWN_HEADERS,
    Origin,
    check_block,
    header_block,
    parse_base,
    request_start,
)


@pytest.mark.parametrize(
    ("url", "origin", "prefix"),
    [
        ("https://api.anthropic.com", Origin("api.anthropic.com", 443, True), ""),
        ("https://api.anthropic.com/", Origin("api.anthropic.com", 443, True), ""),
        ("http://127.0.0.1:8080/base/v2/", Origin("127.0.0.1", 8080), "/base/v2"),
        ("http://[::1]:81", Origin("::1", 81), ""),
        ("http://bücher.example", Origin("xn--bcher-kva.example", 80), ""),
        ("http://service_a.ns.svc:8000", Origin("service_a.ns.svc", 8000), ""),
    ],
)
def test_a_base_url_is_an_origin_and_a_prefix(url: str, origin: Origin, prefix: str) -> None:
    assert parse_base(url) == (origin, prefix)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com",
        "unix:///run/x",
        "http://",
        "http://user:hunter2@example.com",
        "http://example.com:0",
        "http://example.com:99999",
        "http://example.com:x",
        "http://example.com/?a=b",
        "http://example.com/#f",
        "http://exa mple.com",
        "http://example.com/a b",
    ],
)
def test_what_is_no_plain_base_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_base(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("origin", "authority", "shown"),
    [
        (Origin("a.example", 80), "a.example", "http://a.example:80"),
        (Origin("a.example", 443, True), "a.example", "https://a.example:443"),
        (Origin("a.example", 443), "a.example:443", "http://a.example:443"),
        (Origin("::1", 8080), "[::1]:8080", "http://[::1]:8080"),
        (Origin("fe80::1%eth0", 80), "[fe80::1]", "http://[fe80::1%eth0]:80"),
    ],
)
def test_the_host_header_leaves_out_the_schemes_own_port_and_a_zone(origin: Origin, authority: str, shown: str) -> None:
    assert origin.authority == authority
    assert str(origin) == shown


def test_a_header_block_is_its_lines() -> None:
    block = header_block([(b"Content-Type", b"application/json"), (b"x-key", b"a b\tc")])
    assert block == b"Content-Type: application/json\r\nx-key: a b\tc\r\n"
    check_block(block)


@given(name=st.binary(min_size=1, max_size=12), value=st.binary(max_size=30))
def test_no_name_and_no_value_breaks_out_of_its_line(name: bytes, value: bytes) -> None:
    try:
        block = header_block([(name, value)])
    except ValueError:
        return
    assert block.count(b"\n") == block.count(b"\r") == 1
    assert block.endswith(b"\r\n")
    assert block.count(b"\0") == 0
    assert b" " not in name and b":" not in name


@pytest.mark.parametrize("name", sorted(OWN_HEADERS))
def test_what_the_connection_writes_itself_is_refused_in_any_case(name: bytes) -> None:
    with pytest.raises(ValueError, match="own"):
        header_block([(name.upper(), b"1")])
    for block in (name.title() + b": 1\r\n", b"a: b\r\n" + name + b":1\r\n"):
        with pytest.raises(ValueError, match="writes itself"):
            check_block(block)


@pytest.mark.parametrize(
    "block",
    [
        b"a: b",
        b"a: b\n",
        b"\r\n",
        b"a: b\r\n\r\nGET / HTTP/1.1\r\n",
        b"a: b\nc: d\r\n",
        b"a: b\r\n\r\n",
        b"content-length : 5\r\n",
        b"a: \0\r\n",
        b": b\r\n",
    ],
)
def test_a_block_that_is_not_whole_lines_is_refused(block: bytes) -> None:
    with pytest.raises(ValueError, match="lines"):
        check_block(block)


def test_adding_checked_blocks_gives_a_checked_block_and_adding_anything_else_does_not() -> None:
    one, two = header_block([(b"a", b"1")]), header_block([(b"b", b"2")])
    assert one + two == b"a: 1\r\nb: 2\r\n"
    made = [type(block).__name__ for block in (one + two, one + b"Host: evil\r\n", b"Host: evil\r\n" + one)]
    assert made == ["HeaderBlock", "bytes", "bytes"]


def test_a_value_may_speak_of_framing() -> None:
    check_block(header_block([(b"x-note", b"content-length: 5")]))


@pytest.mark.parametrize(
    "target", [b"", b"x", b"/a b", b"/a\r\nX: y", b"/\x00", b"http://other/", b"/\xc3\xa9", b"/a#f"]
)
def test_a_target_that_is_not_one_is_refused(target: bytes) -> None:
    with pytest.raises(ValueError, match="target"):
        request_start(Origin("h", 80), b"GET", target)


def test_every_request_says_that_it_understands_no_compression() -> None:
    assert request_start(Origin("h", 81), b"POST", b"/v1?a=b") == (
        b"POST /v1?a=b HTTP/1.1\r\nhost: h:81\r\naccept-encoding: identity\r\n"
    )
    with pytest.raises(ValueError, match="method"):
        request_start(Origin("h", 81), b"GET /x HTTP/1.1\r\n", b"/")

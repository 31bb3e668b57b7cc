"""Every way to cut, bend or continue an answer's bytes: what is read never depends on how they were cut, and a
connection that saw anything but exactly one answer is never used again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.gateway.upstream.connection import MAX_HEAD_BYTES, MAX_HEADERS, Connection
from inference_service.gateway.upstream.errors import BadAnswer, Reset
from inference_service.gateway.upstream.origin import Origin
from inference_service.gateway.upstream.response import HIGH_WATER, Response


class Wire(asyncio.Transport):
    """A transport that remembers what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.reading = True

    def write(self, data: Any) -> None:
        assert not self.aborted

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0


class Pool:
    """An owner that counts."""

    def __init__(self) -> None:
        self.released = self.lost = 0

    def release(self, connection: Connection) -> None:
        self.released += 1

    def gone(self, connection: Connection) -> None:
        self.lost += 1


class Talk:
    """One request on one connection, and the bytes that come back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, head_only: bool = False) -> None:
        self.pool = Pool()
        self.wire = Wire()
        self.connection = Connection(self.pool, Origin("upstream.test", 80), loop)
        self.connection.connection_made(self.wire)
        self.ask(head_only)

    def ask(self, head_only: bool = False) -> Response:
        self.response, self.waiter = self.connection.begin(
            b"GET / HTTP/1.1\r\n\r\n", b"", None, timeout=60, head_only=head_only
        )
        return self.response

    def feed(self, *pieces: bytes, eof: bool = False) -> Talk:
        for piece in pieces:
            if self.wire.aborted:
                break
            self.connection.data_received(piece)
        if eof and not self.wire.aborted:
            self.connection.eof_received()
            self.connection.connection_lost(None)
        return self

    @property
    def body(self) -> bytes:
        return b"".join(self.response.pieces)

    @property
    def outcome(self) -> tuple[Any, ...]:
        """What a reader would see, and whether the connection may carry another request."""
        response = self.response
        reusable = self.pool.released == 1 and not self.connection.closed
        error = type(response.error) if response.error else None
        # Where it was cut by a fault, how much of the body had been parsed before is a matter of cutting.
        body = self.body if response.complete else None
        return (response.complete, error, response.status if not error else None, body, reusable)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    edges = [0, *at, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a != b]


names = st.from_regex(rb"[a-zA-Z][a-zA-Z0-9-]{0,12}", fullmatch=True).filter(
    lambda name: name.lower() not in (b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"keep-alive")
)
values = st.from_regex(rb"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True)
fields = st.lists(st.tuples(names, values), max_size=6)
bodies = st.binary(max_size=300)
places = st.lists(st.integers(0, 2000), max_size=12)
interims = st.lists(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\n"]), max_size=2
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[bytes, bytes]], bytes, str]:
    """Bytes of an answer, and what is in them."""
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 413, 429, 500, 529]))
    headers = draw(fields)
    body = draw(bodies)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    lines = [b"HTTP/1.1 %d What\r\n" % status]
    lines += [b"%b: %b\r\n" % field for field in headers]
    if status in (204, 304):
        body, framing, rest = b"", "length", b""
    elif framing == "length":
        lines.append(b"Content-Length: %d\r\n" % len(body))
        rest = body
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked\r\n")
        chunks = cut(body, draw(places))
        rest = b"".join(b"%x%b\r\n%b\r\n" % (len(c), draw(st.sampled_from([b"", b";a=b"])), c) for c in chunks)
        rest += b"0\r\n" + draw(st.sampled_from([b"", b"Checksum: 1\r\n"])) + b"\r\n"
    else:
        rest = body
    return b"".join(draw(interims)) + b"".join(lines) + b"\r\n" + rest, status, headers, body, framing


@given(answer=answers(), places=places)
def test_a_good_answer_is_read_as_it_was_meant_wherever_it_is_cut(
    loop: asyncio.AbstractEventLoop, answer: Any, places: list[int]
) -> None:
    data, status, headers, body, framing = answer
    talk = Talk(loop).feed(*cut(data, places), eof=framing == "close")
    assert talk.outcome == (True, None, status, body, framing != "close")
    got = [field for field in talk.response.headers if field[0] not in (b"content-length", b"transfer-encoding")]
    assert got == [(name.lower(), value) for name, value in headers]
    assert talk.waiter.done()
    assert talk.pool.released + talk.pool.lost == 1
    assert talk.connection.deadline is None


@given(first=answers().filter(lambda a: a[4] != "close"), second=answers(), places=places)
def test_a_connection_that_is_used_again_reads_the_next_answer_alone(
    loop: asyncio.AbstractEventLoop, first: Any, second: Any, places: list[int]
) -> None:
    talk = Talk(loop).feed(*cut(first[0], places))
    before = talk.response
    talk.ask()
    talk.feed(*cut(second[0], places), eof=second[4] == "close")
    assert b"".join(before.pieces) == first[3]
    assert (talk.response.status, talk.body, talk.response.complete) == (second[1], second[3], True)
    assert talk.response.reused and talk.response.connect_seconds == 0.0


@given(
    answer=answers().filter(lambda a: a[4] != "close"),
    extra=st.one_of(st.binary(min_size=1, max_size=40), st.just(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")),
    places=places,
)
def test_bytes_after_the_end_cost_the_connection_and_not_the_answer(
    loop: asyncio.AbstractEventLoop, answer: Any, extra: bytes, places: list[int]
) -> None:
    talk = Talk(loop).feed(*cut(answer[0] + extra, places))
    assert talk.response.complete and talk.response.error is None
    assert (talk.response.status, talk.body) == (answer[1], answer[3])
    if extra.strip(b"\r\n"):  # an empty line before the next status line is not data (and a parser skips it)
        assert talk.connection.closed and talk.pool.lost == 1


@given(answer=answers(), end=st.integers(0, 2000), places=places)
def test_an_answer_that_ends_early_is_an_error_or_what_until_the_end_means(
    loop: asyncio.AbstractEventLoop, answer: Any, end: int, places: list[int]
) -> None:
    data, _status, _headers, body, framing = answer
    short = data[: end % len(data)]
    talk = Talk(loop).feed(*cut(short, places), eof=True)
    assert talk.connection.closed and talk.pool.lost == 1 and talk.wire.aborted
    head_is_whole = framing == "close" and len(short) >= len(data) - len(body)
    if head_is_whole:
        assert talk.response.complete and body.startswith(talk.body)
    else:
        assert isinstance(talk.response.error, Reset)
        assert talk.response.error.before_any_byte is (not short)
        assert "http://upstream.test:80" in str(talk.response.error)
        assert body.startswith(talk.body)


@given(
    answer=answers(),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=4),
    places=places,
    eof=st.booleans(),
)
def test_what_becomes_of_a_damaged_answer_does_not_depend_on_the_cuts(
    loop: asyncio.AbstractEventLoop, answer: Any, changes: list[tuple[int, bytes, int]], places: list[int], eof: bool
) -> None:
    data = answer[0]
    for at, new, removed in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + removed :]
    whole = Talk(loop).feed(data, eof=eof)
    pieces = Talk(loop).feed(*cut(data, places), eof=eof)
    one_by_one = Talk(loop).feed(*(data[i : i + 1] for i in range(len(data))), eof=eof)
    for other in (pieces, one_by_one):
        assert whole.outcome[:4] == other.outcome[:4]
        if not data.endswith((b"\r", b"\n")):
            assert whole.outcome == other.outcome
    for talk in (whole, pieces, one_by_one):
        assert not (talk.response.complete and talk.response.error)
        assert talk.wire.aborted == talk.connection.closed
        assert talk.pool.lost <= 1 and talk.pool.released <= 1


@given(pieces=st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_garbage_is_refused_and_breaks_nothing(loop: asyncio.AbstractEventLoop, pieces: list[bytes]) -> None:
    talk = Talk(loop).feed(*pieces, eof=True)
    assert talk.connection.closed and talk.pool.lost == 1
    assert talk.pool.released == 0 or talk.response.complete


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b""))


@pytest.mark.parametrize(
    "data",
    [
        head(b"Content-Length: 1", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n",
        head(b"Transfer-Encoding: chunked", b"Content-Length: 1") + b"1\r\nx\r\n0\r\n\r\n",
        head(b"Content-Length: 1", b"Content-Length: 2") + b"x",
        head(b"Content-Length: 1, 1") + b"x",
        head(b"Content-Length: -1") + b"x",
        head(b"Content-Length: +1") + b"x",
        head(b"Content-Length: 0x1") + b"x",
        head(b"Content-Length: 99999999999999999999") + b"x",
        head(b"Transfer-Encoding: gzip, chunked") + b"1\r\nx\r\n0\r\n\r\n",
        head(b"Transfer-Encoding: chunked, gzip") + b"x",
        head(b"Transfer-Encoding: identity") + b"x",
        head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n",
        head(b"Transfer-Encoding: xchunked") + b"1\r\nx\r\n0\r\n\r\n",
        head(b"Content-Length : 1") + b"x",
        head(b" Content-Length: 1") + b"x",
        head(b"A: b", b" folded", b"Content-Length: 1") + b"x",
        head(b"A\0: b", b"Content-Length: 1") + b"x",
        head(b"A: b\0", b"Content-Length: 1") + b"x",
        head(b"no colon", b"Content-Length: 1") + b"x",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 099 No\r\n\r\n",
        b"HTTP/1.1 600 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"<html>",
        b"\x16\x03\x01\x02\x00",
        head(b"Transfer-Encoding: chunked") + b"-1\r\nx\r\n0\r\n\r\n",
        head(b"Transfer-Encoding: chunked") + b"1\nx\r\n0\r\n\r\n",
        head(b"Transfer-Encoding: chunked") + b"1\r\nxx\r\n0\r\n\r\n",
        head(b"Transfer-Encoding: chunked") + b"fffffffffffffffff\r\nx",
        head(*(b"h%d: v" % i for i in range(MAX_HEADERS)), b"Content-Length: 0"),
        head(b"big: " + b"x" * MAX_HEAD_BYTES, b"Content-Length: 0"),
        b"HTTP/1.1 200 " + b"x" * (MAX_HEAD_BYTES + 1),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
        head(b"Transfer-Encoding: chunked") + b"1;" + b"x" * (MAX_HEAD_BYTES * 2),
    ],
    ids=lambda data: repr(bytes(data[:60])),
)
@pytest.mark.parametrize("size", [1 << 30, 1000])
def test_what_contradicts_itself_or_is_too_large_is_refused(
    loop: asyncio.AbstractEventLoop, data: bytes, size: int
) -> None:
    talk = Talk(loop).feed(*(data[i : i + size] for i in range(0, len(data), size)))
    assert isinstance(talk.response.error, BadAnswer), talk.outcome
    assert "http://upstream.test:80" in str(talk.response.error)
    assert talk.wire.aborted and talk.pool.released == 0 and talk.pool.lost == 1


def test_a_trailer_without_an_end_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop).feed(head(b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\nT: ", *[b"x" * 1000] * 70)
    assert isinstance(talk.response.error, BadAnswer)
    assert talk.wire.aborted and talk.pool.released == 0


def test_a_head_request_has_no_body_and_ends_the_connection(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop, head_only=True).feed(head(b"Content-Length: 5000"))
    assert talk.outcome == (True, None, 200, b"", False)
    assert talk.response.header(b"content-length") == b"5000"
    assert loop.run_until_complete(talk.response.read(10)) == b""


@pytest.mark.parametrize("lines", [(b"Connection: close",), (b"Connection: Close, TE",)])
def test_a_connection_that_is_announced_to_close_is_not_kept(
    loop: asyncio.AbstractEventLoop, lines: tuple[bytes, ...]
) -> None:
    talk = Talk(loop).feed(head(b"Content-Length: 2", *lines) + b"ok")
    assert talk.outcome == (True, None, 200, b"ok", False)


def test_http_1_0_is_understood_and_not_kept(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop).feed(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert talk.outcome == (True, None, 200, b"ok", False)


def test_the_upstreams_keep_alive_time_is_noted_with_a_margin(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop).feed(head(b"Keep-Alive: timeout=5, max=100", b"Content-Length: 0"))
    assert talk.connection.keep_seconds == 4.0


def test_bytes_on_a_connection_that_asked_nothing_end_it(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop).feed(head(b"Content-Length: 0"))
    assert not talk.wire.aborted
    talk.feed(b"H")
    assert talk.connection.closed and talk.pool.lost == 1


def test_one_piece_that_holds_the_whole_body_is_handed_over_as_it_is(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop).feed(head(b"Content-Length: 5") + b"hello")
    held = talk.response.pieces[0]
    assert loop.run_until_complete(talk.response.read(10)) is held


def test_a_reader_that_pauses_pauses_the_upstream_until_it_has_read(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop).feed(head(b"Transfer-Encoding: chunked"))
    fed = 0
    while talk.wire.reading:
        talk.feed(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        fed += 0x2000
    assert HIGH_WATER < fed <= HIGH_WATER + 0x2000
    assert loop.run_until_complete(talk.response.piece()) == b"x" * fed
    assert talk.wire.reading


def test_a_connection_whose_answer_was_whole_while_it_was_paused_is_read_again(
    loop: asyncio.AbstractEventLoop,
) -> None:
    size = HIGH_WATER + 10
    talk = Talk(loop).feed(head(b"Content-Length: %d" % size) + b"x" * (size - 1))
    assert not talk.wire.reading
    talk.feed(b"x")  # TLS hands over what it has decrypted, paused or not
    assert talk.outcome[0]
    assert [talk.wire.reading, talk.pool.released] == [True, 1]


def test_a_body_cut_into_single_bytes_is_paused_by_its_pieces(loop: asyncio.AbstractEventLoop) -> None:
    talk = Talk(loop).feed(head(b"Transfer-Encoding: chunked"))
    for _ in range(5000):
        talk.feed(b"1\r\nx\r\n")
        if not talk.wire.reading:
            break
    assert not talk.wire.reading


@pytest.mark.parametrize("extra", [b"", b"\r\n2\r\nok\r\n0\r\n\r\n"])
def test_what_was_read_before_a_cut_is_still_there_to_read(loop: asyncio.AbstractEventLoop, extra: bytes) -> None:
    talk = Talk(loop).feed(head(b"Transfer-Encoding: chunked") + b"4\r\npart\r\n", eof=True)
    assert loop.run_until_complete(talk.response.piece()) == b"part"
    for _ in range(2):
        with pytest.raises(Reset, match="in the middle of its answer"):
            loop.run_until_complete(talk.response.piece())

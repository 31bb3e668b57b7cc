"""The gateway's client against real sockets: pooling, bodies both ways, time-outs, early answers, back-pressure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from doubles.raw_http_server import (
    Reader,
    Request,
    Writer,
    answering,
    plain,
    read_chunks,
    read_head,
    read_request,
    serving,
)
from event_loops import both, run, until
from upstream_requests import HEADERS, ask, pool_of

from inference_service.gateway.upstream import (
    Reset,
)


@both
def test_a_request_arrives_as_it_was_given_and_its_answer_comes_back(loop_kind: str) -> None:
    seen: list[Request] = []

    async def main() -> None:
        async with serving(answering(plain(b"hello", extra=b"X-Request-ID: 7\r\n"), after=seen.append)) as server:
            pool = pool_of(server)
            response = await pool.send(b"POST", b"/v1/messages?beta=true", HEADERS, b'{"a":1}', timeout=5)
            assert (response.status, await response.read(100)) == (200, b"hello")
            assert response.header(b"x-request-id") == b"7"
            assert response.headers == [(b"x-request-id", b"7"), (b"content-length", b"5")]
            assert not response.reused and 0 < response.connect_seconds < 5
            response = await pool.send(b"GET", b"/v1/models", b"", timeout=5)
            assert response.reused and response.connect_seconds == 0.0
            assert await response.read(5) == b"hello"
            assert server.accepted == 1
            pool.close()
            await until(lambda: server.open == 0)

    run(loop_kind, main())
    first, second = seen
    assert (first.method, first.target, first.body) == ("POST", "/v1/messages?beta=true", b'{"a":1}')
    assert first.headers["accept-encoding"] == "identity"
    assert first.headers["content-length"] == "7"
    assert first.headers["x-api-key"] == "k"
    assert first.headers["host"].startswith("127.0.0.1:")
    assert (second.method, second.body) == ("GET", b"")
    assert "content-length" not in second.headers and "transfer-encoding" not in second.headers


@both
@pytest.mark.parametrize("length", [None, 300_000])
def test_a_body_that_is_an_iterator_is_sent_whole_and_the_connection_kept(loop_kind: str, length: int | None) -> None:
    seen: list[Request] = []

    async def body() -> AsyncIterator[bytes]:
        for number in range(30):
            yield b""
            yield bytes([65 + number]) * 10_000
            await asyncio.sleep(0)

    async def main() -> None:
        async with serving(answering(plain(b"ok"), after=seen.append)) as server:
            pool = pool_of(server)
            for _ in range(2):
                assert await ask(pool, body=body(), length=length) == (200, b"ok")
            assert (server.accepted, pool.idle, pool.connections) == (1, 1, 1)

    run(loop_kind, main())
    for request in seen:
        assert request.body == b"".join(bytes([65 + number]) * 10_000 for number in range(30))
        assert request.headers.get("content-length") == (str(length) if length else None)


@both
@pytest.mark.parametrize("length", [5, 50])
def test_a_body_of_another_length_than_announced_is_not_let_through(loop_kind: str, length: int) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"0123456789"

    async def main() -> None:
        async with serving(answering(plain(b"ok"))) as server:
            pool = pool_of(server)
            with pytest.raises(ValueError, match="announced"):
                await ask(pool, body=body(), length=length)
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_what_the_body_raises_is_raised_and_the_request_never_looks_whole(loop_kind: str) -> None:
    whole: list[Request] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        await asyncio.sleep(0.02)
        raise KeyError("the client went away")

    async def main() -> None:
        async with serving(answering(plain(b"ok"), after=whole.append)) as server:
            pool = pool_of(server)
            with pytest.raises(KeyError, match="went away"):
                await ask(pool, body=body())
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())
    assert not whole


@both
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_an_answer_before_the_request_is_whole_is_delivered_and_ends_the_sending(
    loop_kind: str, sized: bool, hard: bool
) -> None:
    """`hard`: the server closes at once with the rest of the request unread, so the kernel resets the connection."""
    sent = 0
    ended = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent, ended
        try:
            while True:
                yield b"x" * 65536
                sent += 65536
                await asyncio.sleep(0)
        finally:
            ended = True

    async def too_large(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        await reader.readexactly(100_000)
        writer.write(plain(b"too large", status="413 Content Too Large"))
        if hard:
            return
        await writer.drain()
        while await reader.read(65536):
            pass

    async def main() -> None:
        async with serving(too_large) as server:
            pool = pool_of(server)
            assert await ask(pool, body=body(), length=1 << 40 if sized else None) == (413, b"too large")
            await until(lambda: ended)
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())
    assert sent < 1 << 26


@both
def test_an_early_refusal_ends_the_sending_as_soon_as_it_begins(loop_kind: str) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 1000
                    await asyncio.sleep(0.001)
            finally:
                ended.set()

        async def too_large(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\n\r\nabc")
            await ended.wait()
            writer.write(b"def")
            await reader.read()

        async with serving(too_large) as server:
            pool = pool_of(server)
            assert await ask(pool, body=body()) == (413, b"abcdef")
            assert pool.connections == 0

    run(loop_kind, main())


@both
def test_an_early_answer_to_a_large_body_of_bytes_is_delivered_and_the_connection_not_used_again(
    loop_kind: str,
) -> None:
    async def too_large(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(plain(b"no", status="413 Content Too Large"))
        await asyncio.sleep(30)

    async def main() -> None:
        async with serving(too_large) as server:
            pool = pool_of(server)
            assert await ask(pool, body=b"x" * (1 << 25)) == (413, b"no")
            assert pool.connections == 0

    run(loop_kind, main())


@both
def test_a_good_answer_that_begins_early_does_not_end_the_sending(loop_kind: str) -> None:
    async def echo(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async for chunk in read_chunks(reader):
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async def main() -> None:
        turn = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            for number in range(5):
                yield b"%d" % number
                await turn.wait()
                turn.clear()

        async with serving(echo) as server:
            pool = pool_of(server)
            response = await pool.send(b"POST", b"/", b"", body(), timeout=5)
            got = []
            async for piece in response:
                got.append(piece)
                turn.set()
            assert got == [b"0", b"1", b"2", b"3", b"4"]
            assert (pool.idle, pool.connections) == (1, 1)

    run(loop_kind, main())


@both
def test_interim_answers_are_passed_over(loop_kind: str) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    async def main() -> None:
        async with serving(answering(interim + plain(b"final", extra=b"A: b\r\n"))) as server:
            pool = pool_of(server)
            for _ in range(2):
                response = await pool.send(b"GET", b"/", b"", timeout=5)
                assert (response.status, await response.read(10)) == (200, b"final")
                assert response.headers[0] == (b"a", b"b")
            assert server.accepted == 1

    run(loop_kind, main())


@both
def test_a_stream_is_handed_on_as_it_comes(loop_kind: str) -> None:
    async def main() -> None:
        turn = asyncio.Event()

        async def script(reader: Reader, writer: Writer) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(5):
                writer.write(b"1\r\n%d\r\n" % number)
                await turn.wait()
                turn.clear()
            writer.write(b"0\r\n\r\n")
            await reader.read()

        async with serving(script) as server:
            pool = pool_of(server)
            response = await pool.send(b"POST", b"/", b"", b"{}", timeout=5)
            got = []
            async for piece in response:
                got.append(piece)
                turn.set()
            assert got == [b"0", b"1", b"2", b"3", b"4"]
            assert await response.piece() is None
            assert pool.idle == 1

    run(loop_kind, main())


@both
def test_a_body_until_the_connection_closes_is_whole_and_one_that_breaks_off_is_not(loop_kind: str) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        request = await read_request(reader)
        if request.target == "/close":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        elif request.target == "/short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        elif request.target == "/chunk":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n")

    async def main() -> None:
        async with serving(script) as server:
            pool = pool_of(server)
            assert await ask(pool, b"/close") == (200, b"until the end")
            for target in (b"/short", b"/chunk"):
                response = await pool.send(b"POST", target, b"", b"{}", timeout=5)
                with pytest.raises(Reset) as cut:
                    await response.read(1000)
                assert not cut.value.before_any_byte
                assert f"http://127.0.0.1:{server.port}" in str(cut.value)
            assert pool.connections == 0
            assert server.accepted == 3

    run(loop_kind, main())


@both
def test_a_fresh_connection_that_ends_without_an_answer_is_an_error_and_not_tried_again(loop_kind: str) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await read_request(reader)

    async def main() -> None:
        async with serving(script) as server:
            pool = pool_of(server)
            with pytest.raises(Reset) as cut:
                await ask(pool)
            assert cut.value.before_any_byte
            assert server.accepted == 1

    run(loop_kind, main())


@both
@pytest.mark.parametrize("when", ["at the request", "before it"])
def test_a_kept_connection_that_was_closed_meanwhile_costs_a_new_one_and_no_error(loop_kind: str, when: str) -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(plain(b"ok"))
        if when == "at the request":
            await read_request(reader)

    async def main() -> None:
        async with serving(once) as server:
            pool = pool_of(server)
            for number in range(1, 5):
                assert await ask(pool) == (200, b"ok")
                assert server.accepted == number
                if when == "before it":
                    await until(lambda: pool.connections == 0)

    run(loop_kind, main())


@both
def test_a_connection_that_is_replaced_ends_again_is_an_error_then(loop_kind: str) -> None:
    async def main() -> None:
        accepted = 0

        async def script(reader: Reader, writer: Writer) -> None:
            nonlocal accepted
            accepted += 1
            await read_request(reader)
            if accepted == 1:
                writer.write(plain(b"ok"))
                await read_request(reader)

        async with serving(script) as server:
            pool = pool_of(server)
            assert await ask(pool) == (200, b"ok")
            with pytest.raises(Reset) as cut:
                await ask(pool)
            assert cut.value.before_any_byte
            assert accepted == 2

    run(loop_kind, main())


@both
def test_a_kept_connection_that_ends_after_a_while_of_work_is_an_error_as_the_work_may_be_done(loop_kind: str) -> None:
    async def main() -> None:
        async def script(reader: Reader, writer: Writer) -> None:
            await read_request(reader)
            writer.write(plain(b"ok"))
            await read_request(reader)
            await asyncio.sleep(1.2)

        async with serving(script) as server:
            pool = pool_of(server)
            assert await ask(pool) == (200, b"ok")
            with pytest.raises(Reset):
                await ask(pool)
            assert server.accepted == 1

    run(loop_kind, main())


@both
def test_a_body_that_can_be_read_only_once_is_not_sent_twice(loop_kind: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(plain(b"ok"))
        await read_head(reader)

    async def main() -> None:
        async with serving(once) as server:
            pool = pool_of(server)
            assert await ask(pool) == (200, b"ok")
            with pytest.raises(Reset) as cut:
                await ask(pool, body=body())
            assert cut.value.before_any_byte
            assert server.accepted == 1

    run(loop_kind, main())

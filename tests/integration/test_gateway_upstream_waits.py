"""The client towards an upstream over time: silence, slow sides, back-pressure, limits, addresses."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from doubles.raw_http_server import (
    Reader,
    Request,
    Writer,
    answering,
    plain,
    read_head,
    read_request,
    serving,
)
from event_loops import both, run, until
from upstream_requests import ask, pool_of

from inference_service.gateway.upstream import (
    BadAnswer,
    Closed,
    ConnectFailed,
    Origin,
    Pool,
    PoolBusy,
    TimedOut,
)


@both
def test_silence_is_an_error_in_time_before_and_within_an_answer(loop_kind: str) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        request = await read_request(reader)
        if request.target == "/half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        if request.target == "/body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
        await reader.read()

    async def main() -> None:
        async with serving(script) as server:
            pool = pool_of(server)
            loop = asyncio.get_running_loop()
            for target, untouched in ((b"/none", True), (b"/half", False)):
                began = loop.time()
                with pytest.raises(TimedOut, match=r"did not send an answer within 0\.15 s") as late:
                    await ask(pool, target, timeout=0.15)
                assert late.value.before_any_byte is untouched
                assert 0.14 <= loop.time() - began < 1
            response = await pool.send(b"POST", b"/body", b"", b"{}", timeout=0.15)
            assert await response.piece() == b"some"
            with pytest.raises(TimedOut, match="more of its answer"):
                await response.piece()
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
@pytest.mark.parametrize("size", [1, 1 << 24])
def test_the_clock_does_not_run_while_a_slow_client_sends(loop_kind: str, size: int) -> None:
    """Neither after a piece that the transport took at once, nor after one that it had to be waited for."""

    async def body() -> AsyncIterator[bytes]:
        yield b"a" * size
        await asyncio.sleep(0.8)
        yield b"b" * size

    async def main() -> None:
        async with serving(answering(plain(b"ok"))) as server:
            pool = pool_of(server)
            assert await ask(pool, body=body(), timeout=0.5) == (200, b"ok")
            assert pool.idle == 1

    run(loop_kind, main())


@both
def test_the_clock_does_not_run_while_a_slow_client_reads(loop_kind: str) -> None:
    async def main() -> None:
        reading = asyncio.Event()

        async def script(reader: Reader, writer: Writer) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await reading.wait()
            writer.write(b"cd")
            await reader.read()

        async with serving(script) as server:
            pool = pool_of(server)
            response = await pool.send(b"POST", b"/", b"", b"", timeout=0.5)
            assert await response.piece() == b"ab"
            await asyncio.sleep(0.8)
            reading.set()
            assert await response.read(10) == b"cd"
            await asyncio.sleep(0.8)
            assert pool.idle == 1

    run(loop_kind, main())


@both
def test_deadlines_of_different_requests_on_one_connection_are_kept_apart(loop_kind: str) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        while True:
            request = await read_request(reader)
            await asyncio.sleep(float(request.target[1:]))
            writer.write(plain(b"ok"))

    async def main() -> None:
        async with serving(script) as server:
            pool = pool_of(server)
            assert await ask(pool, b"/0", timeout=60) == (200, b"ok")
            began = asyncio.get_running_loop().time()
            with pytest.raises(TimedOut):
                await ask(pool, b"/5", timeout=0.1)
            assert asyncio.get_running_loop().time() - began < 2
            assert await ask(pool, b"/0", timeout=0.1) == (200, b"ok")
            assert await ask(pool, b"/0.3", timeout=60) == (200, b"ok")

    run(loop_kind, main())


@both
def test_a_large_body_that_is_taken_slowly_is_no_silence(loop_kind: str) -> None:
    size, seconds = 1 << 24, 2.0

    async def slow(reader: Reader, writer: Writer) -> None:
        # What the kernel holds is beyond a client's sight, and has to be less than one time-out's worth.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        await read_head(reader)
        loop = asyncio.get_running_loop()
        began = loop.time()
        taken = 0
        while taken < size:
            if taken <= size * (loop.time() - began) / seconds:
                taken += len(await reader.read(1 << 18))
            else:
                await asyncio.sleep(0.005)
        writer.write(plain(b"ok"))
        await reader.read()

    async def main() -> None:
        async with serving(slow) as server:
            pool = pool_of(server)
            began = asyncio.get_running_loop().time()
            assert await ask(pool, body=b"x" * size, timeout=1.0) == (200, b"ok")
            assert asyncio.get_running_loop().time() - began > 1.5, "too fast to show anything"

    run(loop_kind, main())


@both
def test_an_upstream_that_takes_no_more_of_the_body_is_given_up(loop_kind: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async def deaf(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        await asyncio.sleep(30)

    async def main() -> None:
        async with serving(deaf) as server:
            pool = pool_of(server)
            for what in (body(), b"x" * (1 << 25)):
                with pytest.raises(TimedOut):
                    await ask(pool, body=what, timeout=0.2)
            assert pool.connections == 0

    run(loop_kind, main())


@both
def test_a_reader_that_pauses_does_not_make_memory_grow_on_either_side(loop_kind: str) -> None:
    size = 1 << 26
    written = 0

    async def fast(reader: Reader, writer: Writer) -> None:
        nonlocal written
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        block = b"x" * (1 << 16)
        while written < size:
            writer.write(block)
            written += len(block)
            await writer.drain()
        await reader.read()

    async def main() -> None:
        async with serving(fast) as server:
            pool = pool_of(server)
            tracemalloc.start()
            try:
                response = await pool.send(b"GET", b"/", b"", timeout=5)
                await asyncio.sleep(0.3)
                paused_at = written
                await asyncio.sleep(0.2)
                assert written == paused_at < size // 2, "the upstream was not made to wait"
                got = 0
                async for piece in response:
                    got += len(piece)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert got == size
            assert peak < 8 << 20
            assert pool.idle == 1

    run(loop_kind, main())


@both
def test_a_fast_body_waits_for_a_slow_upstream(loop_kind: str) -> None:
    pulled = 0
    gate: list[asyncio.Event] = []

    async def body() -> AsyncIterator[bytes]:
        nonlocal pulled
        for _ in range(1024):
            pulled += 1 << 16
            yield b"x" * (1 << 16)

    async def slow(reader: Reader, writer: Writer) -> None:
        _, _, headers = await read_head(reader)
        await gate[0].wait()
        await reader.readexactly(int(headers["content-length"]))
        writer.write(plain(b"ok"))
        await reader.read()

    async def main() -> None:
        gate.append(asyncio.Event())
        async with serving(slow) as server:
            pool = pool_of(server)
            asking = asyncio.create_task(ask(pool, body=body(), length=1 << 26))
            await asyncio.sleep(0.3)
            assert pulled < 1 << 25, "the body was pulled faster than it was sent"
            gate[0].set()
            assert await asking == (200, b"ok")

    run(loop_kind, main())
    assert pulled == 1 << 26


@both
def test_reading_is_limited_and_closing_cuts_an_answer_that_is_not_whole(loop_kind: str) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        request = await read_request(reader)
        if request.target == "/chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8\r\n12345678\r\n" * 5)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n12345678")
        await reader.read()

    async def main() -> None:
        async with serving(script) as server:
            pool = pool_of(server)
            for target in (b"/chunked", b"/length"):
                response = await pool.send(b"GET", target, b"", timeout=5)
                with pytest.raises(BadAnswer, match="longer than 20 bytes"):
                    await response.read(20)
                assert pool.connections == 0
            response = await pool.send(b"GET", b"/length", b"", timeout=5)
            response.close()
            response.close()
            assert pool.connections == 0
            with pytest.raises(Closed):
                await response.piece()
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_closing_a_whole_answer_keeps_the_connection(loop_kind: str) -> None:
    async def main() -> None:
        async with serving(answering(plain(b"x" * 100))) as server:
            pool = pool_of(server)
            response = await pool.send(b"GET", b"/", b"", timeout=5)
            await until(lambda: response.complete)
            response.close()
            assert pool.idle == 1
            assert await response.read(100) == b"x" * 100

    run(loop_kind, main())


@both
def test_connections_are_limited_and_given_to_those_who_wait_in_order(loop_kind: str) -> None:
    most = now = 0
    order: list[str] = []

    async def script(reader: Reader, writer: Writer) -> None:
        nonlocal most, now
        while True:
            request = await read_request(reader)
            now += 1
            most = max(most, now)
            order.append(request.target)
            await asyncio.sleep(0.005)
            now -= 1
            writer.write(
                plain(request.target.encode(), extra=b"Connection: close\r\n" if "7" in request.target else b"")
            )

    async def main() -> None:
        async with serving(script) as server:
            pool = pool_of(server, max_connections=3)

            async def one(number: int) -> None:
                assert await ask(pool, b"/%d" % number) == (200, b"/%d" % number)

            tasks = [asyncio.create_task(one(number)) for number in range(30)]
            await asyncio.sleep(0.002)
            assert pool.connections == 3 and pool.waiting == 27
            await asyncio.gather(*tasks)
            assert pool.connections <= 3 and pool.waiting == 0

    run(loop_kind, main())
    assert most == 3
    # Three at a time: nobody is overtaken by more than those who run beside it.
    assert all(abs(place - int(target[1:])) <= 3 for place, target in enumerate(order))


@both
def test_who_waits_too_long_for_a_connection_is_told_so(loop_kind: str) -> None:
    async def main() -> None:
        async with serving(lambda reader, writer: asyncio.sleep(30)) as server:
            pool = pool_of(server, max_connections=1)
            first = asyncio.create_task(ask(pool))
            await asyncio.sleep(0.02)
            with pytest.raises(PoolBusy, match=r"none of the 1 connections to http://127.* within 0\.1 s"):
                await ask(pool, timeout=0.1)
            assert pool.waiting == 0 and pool.connections == 1
            first.cancel()
            await asyncio.wait((first,))
            assert pool.connections == 0

    run(loop_kind, main())


@both
def test_unused_connections_are_closed_after_their_time_and_the_latest_is_used_first(loop_kind: str) -> None:
    async def main() -> None:
        async with serving(answering(plain(b"ok"))) as server:
            pool = pool_of(server, idle_timeout=0.3)
            await asyncio.gather(*(ask(pool) for _ in range(4)))
            assert pool.idle == 4
            for _ in range(8):
                await asyncio.sleep(0.08)
                await ask(pool)
            assert pool.connections == pool.idle == 1, "connections that nobody uses are kept, or the wrong one is used"
            assert server.accepted == 4
            await until(lambda: pool.connections == 0)
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_the_upstreams_own_keep_alive_time_is_respected(loop_kind: str) -> None:
    async def main() -> None:
        async with serving(answering(plain(b"ok", extra=b"Keep-Alive: timeout=1\r\n"))) as server:
            pool = pool_of(server)
            await ask(pool)
            await until(lambda: pool.connections == 0, timeout=2)

    run(loop_kind, main())


@both
def test_a_pool_that_is_closed_lets_requests_finish_and_takes_no_more(loop_kind: str) -> None:
    async def main() -> None:
        async def script(reader: Reader, writer: Writer) -> None:
            while True:
                await read_request(reader)
                await asyncio.sleep(0.1)
                writer.write(plain(b"ok"))

        async with serving(script) as server:
            pool = pool_of(server, max_connections=1)
            await ask(pool)
            under_way = asyncio.create_task(ask(pool))
            await asyncio.sleep(0.02)
            waiting = asyncio.create_task(ask(pool))
            await asyncio.sleep(0.02)
            pool.close()
            with pytest.raises(PoolBusy, match="closed"):
                await waiting
            with pytest.raises(PoolBusy, match="closed"):
                await ask(pool)
            assert await under_way == (200, b"ok")
            assert pool.connections == 0
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_where_nothing_listens_the_error_says_where_and_why(loop_kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def main() -> None:
            pool = Pool(Origin("127.0.0.1", port))
            with pytest.raises(ConnectFailed) as failed:
                await ask(pool)
            assert str(failed.value) == f"cannot connect to http://127.0.0.1:{port}: Connection refused"
            assert pool.connections == 0

        run(loop_kind, main())


@both
@pytest.mark.parametrize("name", ["no-such-host.invalid", "x" * 70 + ".invalid"])
def test_a_name_that_does_not_exist_is_said_to(loop_kind: str, name: str) -> None:
    async def main() -> None:
        pool = Pool(Origin(name, 80))
        with pytest.raises(ConnectFailed, match=rf"http://{name}:80: the name is not known"):
            await ask(pool, timeout=30)
        assert pool.connections == 0

    run(loop_kind, main())


@both
def test_connecting_has_a_time_limit_of_its_own(loop_kind: str) -> None:
    async def main() -> None:
        with socket.socket() as full:
            # A listener whose queue is full: Linux drops further connection requests.
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
                fillers.append(filler)
            pool = Pool(Origin("127.0.0.1", full.getsockname()[1]), connect_timeout=0.2)
            with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1 did not answer within 0\.2 s"):
                await ask(pool)
            assert pool.connections == 0
            for filler in fillers:
                filler.close()

    run(loop_kind, main())


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@both
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6_addresses_work_and_are_bracketed(loop_kind: str) -> None:
    seen: list[Request] = []

    async def main() -> None:
        async with serving(answering(plain(b"six"), after=seen.append), host="::1") as server:
            assert await ask(pool_of(server)) == (200, b"six")
            assert seen[0].headers["host"] == f"[::1]:{server.port}"

    run(loop_kind, main())


@both
def test_a_name_with_several_addresses_is_tried_until_one_answers(
    loop_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses(*_: Any) -> list[str]:
        return ["127.0.0.77", "127.0.0.1"]

    monkeypatch.setattr("inference_service.gateway.upstream.connecting._addresses", addresses)

    async def main() -> None:
        async with serving(answering(plain(b"ok"))) as server:
            pool = Pool(Origin("twofold.test", server.port))
            assert await ask(pool) == (200, b"ok")
            assert pool.connections == 1

    run(loop_kind, main())


def test_tls_settings_must_fit_the_origin() -> None:
    with pytest.raises(ValueError, match="needs TLS"):
        Pool(Origin("a", 443, True))

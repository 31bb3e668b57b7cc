"""Whoever is cancelled, whenever: no connection, no slot is lost, and no answer reaches another request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from unittest import mock

import pytest
from doubles.raw_http_server import Reader, Writer, plain, read_request, serving
from event_loops import both, run, until
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_service.gateway.upstream import Origin, Pool, UpstreamError
from inference_service.gateway.upstream.connection import Connection

BEHAVIOURS = ("plain", "chunked", "slow", "cut", "close", "silent", "early", "garbage", "extra", "dies")


async def behaving(reader: Reader, writer: Writer) -> None:
    """Answer /<behaviour>/<id> with the id in every byte that claims to be its answer."""
    while True:
        # An early answer needs the body's first bytes only; reading all of it here is just as good for the others.
        request = await read_request(reader)
        _, behaviour, name = request.target.split("/")
        word = name.encode() * 50
        if behaviour == "plain":
            writer.write(plain(word))
        elif behaviour == "chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for part in (word[:70], word[70:]):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
        elif behaviour == "slow":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 150\r\n\r\n")
            for start in range(0, 150, 30):
                await asyncio.sleep(0.002)
                writer.write(word[start : start + 30])
        elif behaviour == "cut":
            writer.write(plain(word)[:-20])
            return
        elif behaviour == "close":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + word)
            return
        elif behaviour == "silent":
            await reader.read()
            return
        elif behaviour == "early":
            writer.write(plain(word, status="413 Too Large"))
        elif behaviour == "garbage":
            writer.write(b"\x00\x01garbage")
        elif behaviour == "extra":
            writer.write(plain(word) + plain(b"someone else's"))
        else:
            return


async def body(pieces: int) -> AsyncIterator[bytes]:
    for _ in range(pieces):
        yield b"x" * 1000
        await asyncio.sleep(0)


requests = st.tuples(
    st.sampled_from(BEHAVIOURS),
    st.integers(0, 3),  # pieces of the body; 0: bytes
    st.one_of(st.none(), st.integers(0, 40)),  # turns of the loop after which it is cancelled
    st.sampled_from(["read", "pieces", "close"]),
)


@both
@settings(max_examples=60)
@given(plan=st.lists(requests, min_size=1, max_size=25), places=st.integers(1, 4))
def test_nothing_is_lost_and_nothing_mixed_up(
    loop_kind: str, plan: list[tuple[str, int, int | None, str]], places: int
) -> None:
    async def main() -> None:
        async with serving(behaving) as server:
            pool = Pool(Origin(server.host, server.port), max_connections=places)

            async def one(number: int, behaviour: str, pieces: int, how: str) -> None:
                name = b"%03d" % number
                given_body = body(pieces) if pieces else b"{}"
                target = b"/%b/%b" % (behaviour.encode(), name)
                try:
                    response = await pool.send(
                        b"POST", target, b"", given_body, timeout=0.05 if behaviour == "silent" else 20
                    )
                    if how == "close":
                        response.close()
                        return
                    if how == "read":
                        got = await response.read(10_000)
                    else:
                        got = b"".join([piece async for piece in response])
                    assert got == name * 50
                    assert behaviour not in ("silent", "garbage", "cut", "dies")
                except UpstreamError as error:
                    assert behaviour in ("silent", "garbage", "cut", "dies"), error
                assert pool.connections <= places

            async def cancel(task: asyncio.Task[None], turns: int) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0 if turns % 2 else 0.0005)
                task.cancel()

            tasks = []
            for number, (behaviour, pieces, turns, how) in enumerate(plan):
                task = asyncio.create_task(one(number, behaviour, pieces, how))
                tasks.append(task)
                if turns is not None:
                    tasks.append(asyncio.create_task(cancel(task, turns)))
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome

            assert pool.waiting == 0
            await until(lambda: pool.connections == pool.idle)
            await until(lambda: server.open == pool.connections)
            # Every slot is there: as many requests as there are slots run side by side.
            answers = [pool.send(b"GET", b"/slow/abc", b"", timeout=5) for _ in range(places)]
            responses = await asyncio.gather(*answers)
            assert pool.connections == places and pool.idle == 0
            for response in responses:
                assert await response.read(1000) == b"abc" * 50
            pool.close()
            await until(lambda: server.open == 0)

    run(loop_kind, main())


@both
def test_cancelling_a_request_cuts_its_connection_at_once(loop_kind: str) -> None:
    async def main() -> None:
        async with serving(behaving) as server:
            pool = Pool(Origin(server.host, server.port))

            async def reading() -> None:
                response = await pool.send(b"GET", b"/slow/abc", b"", timeout=5)
                await response.read(1000)

            for work in (pool.send(b"GET", b"/silent/abc", b"", timeout=60), reading()):
                before = server.accepted
                task = asyncio.ensure_future(work)
                await until(lambda before=before: server.accepted == before + 1)
                await asyncio.sleep(0.004)
                task.cancel()
                await asyncio.wait((task,))
                assert task.cancelled()
                # One that was still being made is gone a turn of the loop later.
                await until(lambda: pool.connections == 0, timeout=1)
                await until(lambda: server.open == 0, timeout=1)

    run(loop_kind, main())


@both
@pytest.mark.parametrize("handed", ["a connection", "a place"])
def test_who_is_cancelled_in_the_moment_of_being_handed_something_passes_it_on(loop_kind: str, handed: str) -> None:
    async def main() -> None:
        async with serving(behaving) as server:
            pool = Pool(Origin(server.host, server.port), max_connections=1)
            first = await pool.send(b"GET", b"/slow/abc", b"", timeout=5)
            cancelled, next_one = (
                asyncio.create_task(pool.send(b"GET", b"/plain/%03d" % number, b"", timeout=5)) for number in (1, 2)
            )
            await until(lambda: pool.waiting == 2)
            if handed == "a place":
                first.close()
                cancelled.cancel()
            else:
                release = pool.release

                def release_and_cancel(connection: Connection) -> None:
                    release(connection)
                    cancelled.cancel()

                with mock.patch.object(pool, "release", release_and_cancel):
                    await first.read(1000)
            await asyncio.wait((cancelled,))
            assert cancelled.cancelled()
            response = await next_one
            assert await response.read(1000) == b"002" * 50
            assert (pool.connections, pool.idle, pool.waiting) == (1, 1, 0)
            assert server.accepted == (2 if handed == "a place" else 1)

    run(loop_kind, main())


@both
def test_a_thousand_requests_with_random_cancels_keep_the_slots(loop_kind: str) -> None:
    chance = random.Random(7)

    async def main() -> None:
        async with serving(behaving) as server:
            pool = Pool(Origin(server.host, server.port), max_connections=16)
            answered = 0

            async def one(number: int) -> None:
                nonlocal answered
                name = b"%03d" % number
                kind = chance.choice([b"plain", b"chunked", b"slow", b"extra"])
                response = await pool.send(b"POST", b"/%b/%b" % (kind, name), b"", b"{}", timeout=20)
                assert await response.read(1000) == name * 50
                answered += 1

            tasks = [asyncio.create_task(one(number % 1000)) for number in range(1000)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.001)
                for task in chance.sample(tasks, 3):
                    task.cancel()
            failures = [task.exception() for task in tasks if not task.cancelled()]
            # "extra" may cost a neighbour nothing: its connection is never used again.
            assert set(failures) <= {None}
            assert answered == failures.count(None) > 100
            assert pool.waiting == 0 and pool.connections == pool.idle <= 16
            await until(lambda: server.open == pool.connections)

    run(loop_kind, main())

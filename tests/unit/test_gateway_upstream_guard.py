"""Places, the queue and the breaker of one upstream."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from event_loops import both, run
from hypothesis import given
from hypothesis import strategies as st

from inference_service.gateway.upstream.guard import BreakerSettings, CircuitOpen, Guard, Overloaded


class Clock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock, **settings: float) -> Guard:
    """A guard whose breaker has just opened after three failures in a row."""
    guard = Guard(4, 4, 1, BreakerSettings(consecutive=3, **settings), clock=clock)  # type: ignore[arg-type]
    for _ in range(3):
        assert guard.try_enter()
        guard.leave(False)
    assert guard.state == "open"
    return guard


def test_places_are_counted_without_waiting() -> None:
    guard = Guard(2, 0, 1)
    assert guard.try_enter()
    assert guard.try_enter()
    assert not guard.try_enter()
    guard.leave(True)
    assert guard.try_enter()
    assert guard.active == 2


def test_limits_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="limits"):
        Guard(0, 1, 1)


@both
def test_who_waits_is_let_in_in_order_and_nobody_overtakes(loop_kind: str) -> None:
    async def main() -> None:
        guard = Guard(1, 10, 5)
        order: list[int] = []
        assert guard.try_enter()

        async def one(number: int) -> None:
            await guard.enter()
            order.append(number)
            await asyncio.sleep(0)
            guard.leave(True)

        tasks = [asyncio.create_task(one(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert guard.queued == 5
        guard.leave(True)
        assert not guard.try_enter(), "a newcomer has overtaken"
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
        assert guard.active == guard.queued == 0

    run(loop_kind, main())


@both
def test_a_full_queue_and_a_late_place_are_refused_with_a_time_to_come_back(loop_kind: str) -> None:
    async def main() -> None:
        guard = Guard(1, 1, 0.05, name="claude")
        assert guard.try_enter()
        waiting = asyncio.create_task(guard.enter())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="claude has 1 requests under way and 1 waiting") as full:
            await guard.enter()
        assert full.value.retry_after >= 1
        with pytest.raises(Overloaded, match=r"no place at claude became free within 0\.05 s"):
            await waiting
        assert (guard.active, guard.queued) == (1, 0)

    run(loop_kind, main())


@given(
    plan=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 8), st.sampled_from([True, None])), min_size=1, max_size=30
    ),
    places=st.integers(1, 3),
    queue=st.integers(0, 5),
)
def test_no_place_is_lost_or_made_whoever_is_cancelled_when(
    plan: list[tuple[int, int, bool | None]], places: int, queue: int
) -> None:
    async def main() -> None:
        guard = Guard(places, queue, 0.01)
        most = 0

        async def one(hold: int, ok: bool | None) -> None:
            nonlocal most
            with contextlib.suppress(Overloaded):
                if not guard.try_enter():
                    await guard.enter()
                most = max(most, guard.active)
                try:
                    for _ in range(hold):
                        await asyncio.sleep(0)
                finally:
                    guard.leave(ok)

        tasks = []
        for hold, cancelled_after, ok in plan:
            task = asyncio.create_task(one(hold, ok))
            tasks.append(task)
            for _ in range(cancelled_after % 3):
                await asyncio.sleep(0)
            if cancelled_after > 4:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= places
        assert guard.active == guard.queued == 0
        for _ in range(places):
            assert guard.try_enter()

    run("asyncio", main())


def test_failures_in_a_row_open_it_and_one_success_between_does_not() -> None:
    guard = Guard(4, 0, 1, BreakerSettings(consecutive=3), clock=Clock())
    for ok in (False, False, True, False, False, None, True):
        assert guard.try_enter()
        guard.leave(ok)
    assert guard.state == "closed"
    for _ in range(3):
        assert guard.try_enter()
        guard.leave(False)
    with pytest.raises(CircuitOpen) as refused:
        guard.try_enter()
    assert refused.value.retry_after == 1
    assert guard.active == 0


def test_a_share_of_failures_opens_it_within_a_window_only() -> None:
    clock = Clock()
    guard = Guard(4, 0, 1, BreakerSettings(consecutive=99, failure_share=0.5, least_requests=10), clock=clock)
    for _ in range(9):
        guard.try_enter()
        guard.leave(False)
        clock.now += 30
    assert guard.state == "closed", "failures far apart were added up"
    for number in range(9):
        assert guard.try_enter()
        guard.leave(number % 2 == 1)
    assert guard.state == "closed"
    for ok in (True, False):
        assert guard.try_enter()
        guard.leave(ok)
    assert guard.state == "open"


def test_one_probe_at_a_time_and_each_failed_one_doubles_the_pause() -> None:
    clock = Clock()
    guard = opened(clock, open_seconds=1, longest_open_seconds=3)
    for pause in (1, 2, 3, 3):
        clock.now += pause - 0.01
        with pytest.raises(CircuitOpen):
            guard.try_enter()
        clock.now += 0.02
        assert guard.state == "half_open"
        assert guard.try_enter()
        with pytest.raises(CircuitOpen):
            guard.try_enter()
        guard.leave(False)
        assert guard.state == "open"
    clock.now += 4
    assert guard.try_enter()
    guard.leave(True)
    assert guard.state == "closed"
    assert all(guard.try_enter() for _ in range(4))


def test_a_probe_that_learned_nothing_lets_another_one_in() -> None:
    clock = Clock()
    guard = opened(clock)
    clock.now += 2
    assert guard.try_enter()
    guard.leave(None)
    assert guard.try_enter()
    guard.leave(True)
    assert guard.state == "closed"


@both
def test_who_waits_when_it_opens_is_told_at_once(loop_kind: str) -> None:
    async def main() -> None:
        guard = Guard(1, 5, 60, BreakerSettings(consecutive=1))
        assert guard.try_enter()
        waiting = [asyncio.create_task(guard.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        guard.leave(False)
        for task in waiting:
            with pytest.raises(CircuitOpen):
                await task
        assert guard.active == guard.queued == 0

    run(loop_kind, main())

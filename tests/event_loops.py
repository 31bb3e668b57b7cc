"""Run a coroutine on each event loop that the gateway may run on, with a deadline and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

both = pytest.mark.parametrize("loop_kind", ["asyncio", "uvloop"])


def run(loop_kind: str, main: Coroutine[Any, Any, T], timeout: float = 60) -> T:
    """The coroutine's result; fails when it takes longer than `timeout` seconds or an error went unseen in the loop."""
    kind: Any = pytest.importorskip("uvloop") if loop_kind == "uvloop" else asyncio
    loop: asyncio.AbstractEventLoop = kind.new_event_loop()
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    try:
        result = loop.run_until_complete(asyncio.wait_for(main, timeout))
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    assert not unseen, unseen
    return result


async def until(condition: Any, timeout: float = 10) -> None:
    """Poll `condition` between turns of the loop; fails at the deadline (seconds)."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        assert loop.time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.005)

"""Ctrl-C and SIGTERM: kept out of steps that must not be cut in half, and told what became of what they interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Interruption = TypeVar("Interruption", bound=BaseException)


class _WhatBecame(str):
    """Our words in an interruption's args, where Python may put some: an interrupted codec does."""

    __slots__ = ()


def telling(interruption: Interruption, message: str, fix: str) -> Interruption:
    """The same interruption, saying what became of what it interrupted, and what to do now."""
    interruption.args = (_WhatBecame(message), fix)
    return interruption


def told(interruption: BaseException) -> tuple[str, str] | None:
    """What `telling` has put there: message and fix; None where nothing has been said yet."""
    match interruption.args:
        case (_WhatBecame() as message, str(fix)):
            return str(message), fix
        case _:
            return None


@contextmanager
def held_back(deliver: bool = True) -> Iterator[None]:
    """An interruption that comes during the block takes effect after it, or not at all when `deliver` is false.

    The second is for clean-up that an interruption has begun: that one is raised again afterwards anyway. Signals reach
    the main thread alone, so in any other there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came and deliver:
            signal.raise_signal(came[0])

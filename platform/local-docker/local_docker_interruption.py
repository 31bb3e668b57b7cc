"""A call to Docker that an interruption must not cut in half.

When Ctrl-C breaks off the request that creates a container, the daemon creates it all the same and nobody knows its id.
So such a request runs to its end; the interruption is raised after it, when what was made is known and can be removed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def uninterrupted(call: Callable[[], T]) -> T:
    """The result of `call`, which always runs to its end, however often Ctrl-C or TERM comes meanwhile.

    Raises:
        KeyboardInterrupt, or what the program's handler of TERM raises, when one came; else what `call` raises.
    """
    # Python runs signal handlers, and so raises KeyboardInterrupt, in the main thread alone.
    if threading.current_thread() is not threading.main_thread():
        return call()
    with _held_back(signal.SIGTERM), _held_back(signal.SIGINT):
        return call()


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    came: list[int] = []
    handler = signal.signal(number, lambda received, _frame: came.append(received))
    try:
        yield
    finally:
        signal.signal(number, handler)
        if came:
            signal.raise_signal(number)

"""Does many things at once and waits no longer for them than it is worth: one that hangs delays none of the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection

_MOST_AT_ONCE = 64


def run(tasks: Collection[Callable[[], None]], seconds: float) -> None:
    """Run these, and return when all are done or after `seconds`; what is not done by then is left behind.

    A task must not raise, and leaves what it found where its caller looks for it. The threads do not keep the program
    from ending, which those of concurrent.futures do.
    """
    deadline = time.monotonic() + seconds
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    done: queue.SimpleQueue[None] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while time.monotonic() < deadline:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            task()
            done.put(None)

    for _ in range(min(len(tasks), _MOST_AT_ONCE)):
        threading.Thread(target=work, daemon=True).start()
    for _ in tasks:
        try:
            done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return

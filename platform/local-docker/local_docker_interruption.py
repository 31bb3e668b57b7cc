"""A call to Docker that an interruption must not cut in half.

When Ctrl-C breaks off the request that creates a container, the daemon creates it all the same and nobody knows its id.
So such a request runs to its end; the interruption is raised after it, when what was made is known and can be removed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def uninterrupted(call: Callable[[], T]) -> T:
    """The result of `call`, which always runs to its end.

    Raises:
        The first KeyboardInterrupt or Terminated that came meanwhile, once it has ended; else whatever it raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="docker-call", daemon=True).start()
    interruption: BaseException | None = None
    while not ended.is_set():
        try:
            ended.wait()
        except BaseException as error:
            interruption = interruption or error
    if interruption is not None:
        raise interruption
    if errors:
        raise errors[0]
    return results[0]

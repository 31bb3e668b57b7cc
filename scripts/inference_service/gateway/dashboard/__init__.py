"""The dashboard: one HTML page without anything from outside, and the document behind it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any
from urllib.parse import parse_qsl

import orjson

from inference_service.errors import BadInput, ToolError
from inference_service.gateway.answers import Answer, Request
from inference_service.gateway.dashboard.page import page
from inference_service.sql import Database

__all__ = ["page", "respond"]

_NOT_KEPT = [(b"cache-control", b"no-store")]
_MOST_AT_ONCE = 8
_at_once = 0


async def respond(database: Database, request: Request, live: Sequence[Mapping[str, Any]]) -> Answer:
    """What GET /dashboard/data answers to whoever may see everything; the caller has checked that.

    `live`: see `data.document`. Counting is done in a thread.
    """
    global _at_once
    if _at_once >= _MOST_AT_ONCE:
        return _failed(503, ToolError("busy", "the gateway is counting for other dashboards", "try again in a while"))
    _at_once += 1
    try:
        return await _in_a_thread(lambda: _answer(database, request, live))
    finally:
        _at_once -= 1


def _answer(database: Database, request: Request, live: Sequence[Mapping[str, Any]]) -> Answer:
    from inference_service.gateway.dashboard import data

    try:
        query = _query(request.query)
        return Answer(200, orjson.dumps(data.document(database, query, live, time())), headers=_NOT_KEPT)
    except BadInput as error:
        return _failed(400, error)
    except ToolError as error:
        return _failed(503, error)
    except ValueError:
        return _failed(400, BadInput("invalid_query", "the query string has too many fields", "see /dashboard"))


def _query(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, max_num_fields=50))
    except ValueError as error:
        raise BadInput("invalid_query", str(error), "leave out what the dashboard does not ask for") from None


def _failed(status: int, error: ToolError) -> Answer:
    return Answer(status, orjson.dumps(error.document()), headers=_NOT_KEPT)


async def _in_a_thread(work: Callable[[], Answer]) -> Answer:
    """Its result. Not a thread of asyncio's pool: a quarter of a year takes long to count, and neither others that wait
    for a thread nor the end of the process shall wait for that."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Answer] = loop.create_future()

    def settle(answer: Answer | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif answer is not None:
            done.set_result(answer)

    def run() -> None:
        answer, failure = None, None
        try:
            answer = work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, answer, failure)

    threading.Thread(target=run, name="dashboard", daemon=True).start()
    return await done

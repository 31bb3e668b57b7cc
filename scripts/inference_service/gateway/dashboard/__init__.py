"""The dashboard: one HTML page without anything from outside, and the document behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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


async def respond(database: Database, request: Request, live: Sequence[Mapping[str, Any]]) -> Answer:
    """What GET /dashboard/data answers to whoever may see everything; the caller has checked that.

    `live`: see `data.document`. Counting is done in a thread.
    """
    from inference_service.gateway.dashboard import data

    try:
        query = dict(parse_qsl(request.query, max_num_fields=50))
    except ValueError as error:
        return _failed(400, BadInput("invalid_query", str(error), "leave out what the dashboard does not ask for"))
    try:
        document = await asyncio.to_thread(data.document, database, query, live, time())
    except BadInput as error:
        return _failed(400, error)
    except ToolError as error:
        return _failed(503, error)
    return Answer(200, orjson.dumps(document), headers=_NOT_KEPT)


def _failed(status: int, error: ToolError) -> Answer:
    told = {"error": {"type": error.type, "message": error.message, "fix": error.fix}}
    return Answer(status, orjson.dumps(told), headers=_NOT_KEPT)

"""Errors of one wire format as those of the other: bodies of answers, and events in the middle of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from inference_service.gateway.tapping import Shape
from inference_service.gateway.translation import facts
from inference_service.gateway.translation.fields import Json

_LONGEST_MESSAGE = 2_000
"""Characters. An upstream's error may be a whole page of HTML."""
CUT = "the upstream's answer stopped before its end"


def body(shape: Shape, status: int, upstream: bytes, request_id: str | None = None) -> tuple[int, bytes]:
    """The upstream's error for a client of `shape`: status and body.

    `upstream` is the body of its answer in either format, or anything: then its text is the message. 529, which is
    Anthropic's own, is 503 in OpenAI's shape; both SDKs retry it.
    """
    kind, message, param = read(upstream)
    if shape == "openai":
        names = facts.load().errors
        document = openai(openai_type(status), message, param=param, code=kind)
        return names.openai_statuses.get(status, status), orjson.dumps(document)
    return status, orjson.dumps(anthropic(anthropic_type(status), message, request_id))


def event(shape: Shape, kind: str, message: str, status: int | None = None) -> bytes:
    """The event that ends a stream of `shape` with an error.

    `kind` is a type of Anthropic's or the upstream's own; it says the status, unless that is known.
    """
    names = facts.load().errors
    status = status or names.statuses_of_types.get(kind, 500)
    if shape == "openai":
        return b"data: " + orjson.dumps(openai(openai_type(status), message, code=kind)) + b"\n\n"
    return b"event: error\ndata: " + orjson.dumps(anthropic(anthropic_type(status), message)) + b"\n\n"


def openai(kind: str, message: str, *, param: str | None = None, code: str | None = None) -> Json:
    """An error's body in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def anthropic(kind: str, message: str, request_id: str | None = None) -> Json:
    """An error's body in Anthropic's shape."""
    document: Json = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id:
        document["request_id"] = request_id
    return document


def read(upstream: bytes) -> tuple[str | None, str, str | None]:
    """Type, message and parameter of an error's body in either format; what is none is a message as a whole."""
    try:
        document = orjson.loads(upstream)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        text = upstream[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace")
        return None, " ".join(text.split())[:_LONGEST_MESSAGE] or "the upstream gave no reason", None
    return read_document(document)


def read_document(document: Mapping[str, Any]) -> tuple[str | None, str, str | None]:
    """The same of a body or an event that is parsed already."""
    error = document.get("error")
    if isinstance(error, dict):
        holder: Mapping[str, Any] = error
    else:
        # vLLM told its errors without an `error` around; FastAPI answers {"detail": …}, TAO's services {"error": text}.
        holder = {**document, "message": document.get("message") or error or document.get("detail")}
    message = holder.get("message")
    if not isinstance(message, str):
        message = orjson.dumps(message or document).decode()
    kind, param = holder.get("type"), holder.get("param")
    return (
        kind if isinstance(kind, str) and kind != "error" else None,
        message[:_LONGEST_MESSAGE],
        param if isinstance(param, str) else None,
    )


def openai_type(status: int) -> str:
    """OpenAI's name for the errors of an HTTP status."""
    names = facts.load().errors.openai_types
    return names.get(status) or ("invalid_request_error" if status < 500 else "server_error")


def anthropic_type(status: int) -> str:
    """Anthropic's name for the errors of an HTTP status."""
    names = facts.load().errors.anthropic_types
    return names.get(status) or ("invalid_request_error" if status < 500 else "api_error")

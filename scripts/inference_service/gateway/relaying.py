"""The upstream's answer on its way to the client: whole, too large to hold, or a stream of events."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from inference_service import metering
from inference_service.gateway import converting, tapping, whole_streams
from inference_service.gateway.exchange import EVENT_STREAM
from inference_service.gateway.refusals import ANTHROPIC, OPENAI, Refusal
from inference_service.gateway.upstream.errors import UpstreamError

if TYPE_CHECKING:
    from inference_service.gateway.exchange import Exchange
    from inference_service.gateway.routing import Route
    from inference_service.gateway.upstream.response import Response
    from inference_service.metering import Usage

LONGEST_HELD = 1 << 20
"""Bytes of an answer that is held whole. A longer one that needs no translation is passed on as it comes."""
LONGEST_TRANSLATED = 64 << 20
_LONGEST_ERROR = 256 << 10
_TAIL = 8192
_END_OF_TRANSFER_SECONDS = 1.0
_USAGE_IN_TAIL = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}]|\{[^{}]*\})*\})')


async def relay(exchange: Exchange, route: Route, response: Response, *, streaming: bool, include_usage: bool) -> None:
    """Pass the answer on in the shape that was asked for. `include_usage`: the client asked for usage in its stream.

    Raises:
        Refusal: the upstream failed; what it said is in it.
        UpstreamError: it was cut off or timed out before anything was passed on.
    """
    exchange.row.upstream_request_id = _request_id(response)
    if response.status == 202:
        # The services' way of saying that the model is loading (facts of the TAO servers).
        await response.read(_LONGEST_ERROR)
        raise Refusal(503, "model_loading", "the model is still loading", retry_after=2)
    if response.status >= 400:
        await _relay_error(exchange, route, response)
    elif streaming and (response.header(b"content-type") or b"").startswith(b"text/event-stream"):
        await _relay_stream(exchange, route, response, include_usage=include_usage)
    elif streaming and not route.streaming:
        await _relay_whole_as_stream(exchange, route, response, include_usage=include_usage)
    elif streaming:
        response.close()
        raise Refusal(502, "upstream_bad_answer", "the upstream was asked for a stream and sent something else")
    else:
        await _relay_whole(exchange, route, response)


async def _relay_whole(exchange: Exchange, route: Route, response: Response) -> None:
    translated = route.shape != exchange.shape
    length = response.content_length
    if not translated and (length is None or length > LONGEST_HELD):
        await _relay_long(exchange, route, response)
        return
    began = perf_counter()
    body = await response.read(LONGEST_TRANSLATED)
    exchange.waited += perf_counter() - began
    exchange.usage, _, error_type = tapping.usage_of_answer(route.shape, body)
    if error_type:
        exchange.row.error_type = f"upstream_{error_type}"
    elif exchange.usage is None and not exchange.free:
        exchange.produced_bytes = _text_bytes(body)
    if translated:
        body = converting.answer(body, exchange)
    exchange.row.first_token_seconds = perf_counter() - exchange.arrived
    await exchange.answer(response.status, body)


async def _relay_long(exchange: Exchange, route: Route, response: Response) -> None:
    """Pass it on as it comes, the length as it was said; usage is looked for near its end, where servers put it."""
    row = exchange.row
    length = response.content_length
    content_type = (b"content-type", response.header(b"content-type") or b"application/json")
    row.http_status = response.status
    tail = b""
    held: bytes | None = None
    while True:
        began = perf_counter()
        piece = await response.piece()
        exchange.waited += perf_counter() - began
        if piece is None:
            break
        if held is None:
            row.first_byte_seconds = row.first_token_seconds = perf_counter() - exchange.arrived
            await exchange.start(
                response.status, [content_type] + ([] if length is None else [(b"content-length", b"%d" % length)])
            )
        else:
            await exchange.piece(held)
        held = piece
        tail = (tail + piece[-_TAIL:])[-_TAIL:]
    if held is None:
        await exchange.answer(response.status, b"")
        return
    exchange.produced_bytes = exchange.answered_bytes
    told = _USAGE_IN_TAIL.findall(tail)
    if told:
        exchange.usage = _read_usage(route.shape, told[-1])
    await exchange.last_piece(held)


async def _relay_stream(exchange: Exchange, route: Route, response: Response, *, include_usage: bool) -> None:
    row = exchange.row
    reader = _reader(exchange, route, include_usage)
    row.http_status = response.status
    exchange.reader = reader
    await exchange.start(response.status, [EVENT_STREAM, (b"cache-control", b"no-cache")])
    row.first_byte_seconds = perf_counter() - exchange.arrived
    final: bytes | None = None
    try:
        while True:
            began = perf_counter()
            piece = await response.piece()
            now = perf_counter()
            exchange.waited += now - began
            if piece is None:
                break
            out = reader.feed(piece)
            if row.first_token_seconds is None and reader.first_token:
                row.first_token_seconds = now - exchange.arrived
            if reader.finished or reader.error_type:
                final = out
                break
            if out:
                await exchange.piece(out)
    except UpstreamError as error:
        row.error_type = error.error_type
    if final is None:
        await _cut_off(exchange, reader)
        return
    if reader.error_type and row.error_type is None:
        row.error_type = f"upstream_{reader.error_type}"
    await exchange.last_piece(final)
    # The stream has told its end; what is left is the end of the transfer, without which the connection cannot be kept.
    response.timeout = _END_OF_TRANSFER_SECONDS
    with contextlib.suppress(UpstreamError):
        while reader.finished and await response.piece() is not None:
            pass


async def _relay_whole_as_stream(exchange: Exchange, route: Route, response: Response, *, include_usage: bool) -> None:
    row = exchange.row
    began = perf_counter()
    body = await response.read(LONGEST_TRANSLATED)
    exchange.waited += perf_counter() - began
    reader = _reader(exchange, route, include_usage)
    try:
        out = reader.feed(whole_streams.events(orjson.loads(body)))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise Refusal(502, "upstream_bad_answer", "the upstream's answer is not a chat completion") from None
    row.http_status = response.status
    exchange.reader = reader
    await exchange.start(response.status, [EVENT_STREAM, (b"cache-control", b"no-cache")])
    row.first_byte_seconds = row.first_token_seconds = perf_counter() - exchange.arrived
    await exchange.last_piece(out)


def _reader(exchange: Exchange, route: Route, include_usage: bool) -> tapping.StreamReader:
    if route.shape != exchange.shape:
        return converting.stream(exchange, include_usage)
    return tapping.AnthropicTap() if route.shape == ANTHROPIC else tapping.OpenAITap(not include_usage)


async def _cut_off(exchange: Exchange, reader: tapping.StreamReader) -> None:
    """The stream ended before it told its end: say so in the stream, never pretend that this was all."""
    row = exchange.row
    said = reader.error_type
    rest = reader.end()
    if reader.finished and not reader.error_type:
        # Its end was there, without the line end that it should have.
        await exchange.last_piece(rest)
        return
    if reader.error_type:
        # The client has been told: by the upstream itself, or now by the translation, which knows of no other reason
        # than that it is not complete.
        row.error_type = f"upstream_{said}" if said else row.error_type or f"upstream_{reader.error_type}"
        await exchange.last_piece(rest)
        return
    row.error_type = row.error_type or "upstream_cut"
    if rest:
        await exchange.piece(rest)
    raise Refusal(502, row.error_type, "the upstream ended its answer before it was complete")


async def _relay_error(exchange: Exchange, route: Route, response: Response) -> None:
    row = exchange.row
    body = await response.read(_LONGEST_ERROR)
    _, _, error_type = tapping.usage_of_answer(route.shape, body)
    row.error_type = f"upstream_{error_type or 'error'}"
    if response.status == 401:
        # The caller's own key is good: this is between us and the upstream.
        raise Refusal(502, row.error_type, f"{route.upstream.name} does not accept the gateway's credential")
    retry_after = response.header(b"retry-after")
    headers = [(b"retry-after", retry_after)] if retry_after and retry_after.isdigit() else []
    if route.shape != exchange.shape or not body.lstrip().startswith(b"{"):
        # A proxy's page of HTML is an error of neither format.
        status, body = converting.error(response.status, body, exchange)
    else:
        status = response.status
    await exchange.answer(status, body, headers)


def _read_usage(shape: tapping.Shape, text: bytes) -> Usage | None:
    try:
        usage = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return metering.from_openai(usage) if shape == OPENAI else metering.from_anthropic(usage)


def _text_bytes(body: bytes) -> int:
    """How long the text is in a whole answer that tells no usage.

    Raises:
        Refusal: it is no answer at all.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise Refusal(502, "upstream_bad_answer", "the upstream answered with something that is no JSON object")
    choices = answer.get("choices")
    parts = [_mapping(choice).get("message") for choice in choices] if isinstance(choices, list) else []
    contents = [_mapping(part).get("content") for part in parts] or [answer.get("content")]
    return sum(len(orjson.dumps(content)) for content in contents if content)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _request_id(response: Response) -> str | None:
    value = response.header(b"request-id") or response.header(b"x-request-id")
    return value[:200].decode("latin-1") if value else None

"""What becomes of a request to a model: who sends it, where it goes, whether it may, then the upstream's answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from inference_service import metering
from inference_service.gateway import converting, long_bodies, relaying, tags
from inference_service.gateway.exchange import Exchange, Receive, Send
from inference_service.gateway.refusals import ANTHROPIC, OPENAI, Refusal
from inference_service.gateway.routing import Route
from inference_service.gateway.tapping import Shape
from inference_service.gateway.upstream import retrying
from inference_service.gateway.upstream.errors import PoolBusy, Reset, UpstreamError
from inference_service.gateway.upstream.guard import Refused
from inference_service.gateway.upstreams import COUNT_PATH

if TYPE_CHECKING:
    from inference_service.callers.caller import Caller
    from inference_service.gateway.gateway import Gateway
    from inference_service.gateway.upstream.response import Response

log = logging.getLogger("gateway")

_COUNT_ROUTE = COUNT_PATH.decode()
_WANTED_HEADERS = frozenset(
    (
        b"authorization",
        b"x-api-key",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"host",
        b"anthropic-version",
        b"anthropic-beta",
        b"traceparent",
        tags.HEADER,
    )
)


class ClientGone(Exception):
    """The client closed its connection while its request was still being read."""


async def forward(gateway: Gateway, scope: Mapping[str, Any], receive: Receive, send: Send, shape: Shape) -> None:
    """Handle one POST to a model endpoint, to its last byte; whatever happens, one row is left."""
    protocol = scope["tao.protocol"]
    exchange = Exchange(
        gateway, protocol, scope["tao.cycle"], scope["tao.arrived"], scope["path"], shape, receive, send
    )
    live = gateway.live
    live[exchange.row.request_id] = exchange
    try:
        try:
            await _handle(gateway, exchange, scope)
        except Refusal as refusal:
            await exchange.refuse(refusal)
    except (asyncio.CancelledError, ClientGone):
        exchange.abandoned()
    except Exception:
        log.exception("request %s failed inside the gateway", exchange.row.request_id)
        if not exchange.recorded:
            await exchange.refuse(Refusal(500, "internal_error", "the gateway failed; its log says why"))
    finally:
        protocol.request_task = None
        exchange.leave()
        del live[exchange.row.request_id]


async def _handle(gateway: Gateway, exchange: Exchange, scope: Mapping[str, Any]) -> None:
    headers = exchange.headers = {name: value for name, value in scope["headers"] if name in _WANTED_HEADERS}
    row = exchange.row
    if gateway.tracing is not None:
        exchange.trace = gateway.tracing.begin(headers)
    caller = gateway.known_caller(headers)
    if caller is None:
        caller = await gateway.unknown_caller(headers)
    exchange.caller = caller
    row.caller = caller.name
    row.caller_id = caller.id
    row.team = caller.team
    row.project = caller.project
    if tags.HEADER in headers:
        row.tags = tags.parse(headers[tags.HEADER])
    if gateway.recorder.refusing is not None:
        raise Refusal(503, "log_unavailable", gateway.recorder.refusing, retry_after=5)
    if b"content-encoding" in headers:
        raise Refusal(415, "invalid_request", "the body is compressed; send it as it is", param="Content-Encoding")
    body = await _short_body(exchange, headers.get(b"content-length"))
    if body is None:
        if row.route == _COUNT_ROUTE:
            raise Refusal(413, "invalid_request", f"tokens are counted of {long_bodies.LONGEST_HELD} bytes at most")
        await long_bodies.forward(exchange, caller)
        return
    row.request_bytes = len(body)
    if exchange.kept_response is not None:
        exchange.kept_request = body
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_request", f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refusal(400, "invalid_request", "the body is not a JSON object")
    route = gateway.route_for(document.get("model"))
    price = gateway.price_for(route)
    exchange.routed(route, price)
    exchange.asked_model = str(document["model"])
    streaming = document.get("stream")
    if streaming is None:
        streaming = False
    elif streaming is not True and streaming is not False:
        raise Refusal(400, "invalid_request", "stream is neither true nor false", param="stream")
    row.stream = streaming
    permit(exchange, caller, route)
    if row.route == _COUNT_ROUTE:
        await _count_tokens(gateway, exchange, caller, route, document)
        return
    include_usage, most_output = _prepare(gateway, exchange, route, document, streaming)
    # Written anew: a key that stands twice in the body would mean one thing to us and another to the upstream.
    outgoing = orjson.dumps(document if route.shape == exchange.shape else exchange.translated)
    if caller.limited:
        await admit(
            exchange, caller, route, metering.input_upper_bound(len(outgoing), outgoing.count(b'"url"')), most_output
        )
    exchange.body_bytes = len(outgoing)
    response = await _send_with_retries(gateway, exchange, route, outgoing, route.upstream.target)
    try:
        await relaying.relay(exchange, route, response, streaming=streaming, include_usage=include_usage)
    except UpstreamError as error:
        raise refusal_of(error, route) from error
    finally:
        response.close()
        exchange.leave()


async def _count_tokens(
    gateway: Gateway, exchange: Exchange, caller: Caller, route: Route, document: dict[str, Any]
) -> None:
    """Let the vendor count a prompt's tokens, which costs nothing."""
    if route.shape != ANTHROPIC:
        raise Refusal(
            400, "untranslatable", f"{route.model} cannot count tokens, only Claude's models can", param="model"
        )
    exchange.free = True
    if caller.limited:
        await admit(exchange, caller, route, 0, 0)
    body = orjson.dumps(document)
    response = await _send_with_retries(gateway, exchange, route, body, route.upstream.target_for(COUNT_PATH))
    try:
        await relaying.relay(exchange, route, response, streaming=False, include_usage=True)
    except UpstreamError as error:
        raise refusal_of(error, route) from error
    finally:
        response.close()
        exchange.leave()


def permit(exchange: Exchange, caller: Caller, route: Route) -> None:
    """Hold the route against what the caller may use, and against a budget that could not be kept.

    Raises:
        Refusal: it may not.
    """
    allowed = caller.allowed_models
    if allowed is not None and not caller.may_use(route.model, route.network_arch, route.job_id):
        raise Refusal(
            403,
            "model_not_allowed",
            f"{caller.name} may not use {exchange.asked_model!r}; it may use: {', '.join(sorted(allowed))}",
            param="model",
        )
    if caller.has_budget and exchange.price is None and route.job_id is None:
        raise Refusal(
            400,
            "unpriced_refused",
            f"{route.model} has no price, so that the budget of {caller.name} could not be kept",
            param="model",
            fix="add its price to the file that TAO_INF_PRICING names",
        )


async def admit(exchange: Exchange, caller: Caller, route: Route, input_tokens: int, output_tokens: int) -> None:
    """Reserve what the request can use at most.

    Raises:
        Refusal: a limit of the caller's would be passed (429), or cannot be looked up (503).
    """
    gateway = exchange.gateway
    if route.meter is not None:
        nano_usd = route.meter.upper_bound_nano_usd(gateway.request_seconds)
    elif exchange.price is not None:
        nano_usd = exchange.price.upper_bound_nano_usd(input_tokens, output_tokens)
    else:
        nano_usd = 0
    exchange.admission = gateway.accounts.try_admit(caller, input_tokens + output_tokens, nano_usd, exchange.row.time)
    if exchange.admission is None:
        exchange.admission = await gateway.admit_slowly(
            caller, input_tokens + output_tokens, nano_usd, exchange.row.time
        )


def _prepare(
    gateway: Gateway, exchange: Exchange, route: Route, document: dict[str, Any], streaming: bool
) -> tuple[bool, int]:
    """Put the document into the upstream's shape; whether the client wants usage in its stream, and the most tokens
    that the answer can have."""
    include_usage = True
    if streaming and exchange.shape == OPENAI:
        options = document.get("stream_options")
        include_usage = isinstance(options, dict) and options.get("include_usage") is True
        if not route.streaming:
            # It answers at once, and relaying makes a stream of that.
            document.pop("stream_options", None)
            document["stream"] = False
        elif route.shape == OPENAI and not include_usage:
            document["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    if route.shape != exchange.shape:
        exchange.translated = converting.request(document, exchange.shape, route.model)
        if not route.streaming:
            exchange.translated.pop("stream_options", None)
            exchange.translated["stream"] = False
        return include_usage, converting.most_output(exchange.translated)
    return include_usage, converting.most_output(document)


async def _short_body(exchange: Exchange, content_length: bytes | None) -> bytes | None:
    """The request's body; None if it is longer than what is held, and then nothing of it is lost."""
    if content_length is not None and len(content_length) > 7:
        return None
    receive = exchange.receive
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if message["type"] == "http.disconnect":
            raise ClientGone
        return body
    pieces = [body]
    size = len(body)
    while message.get("more_body"):
        if size > long_bodies.LONGEST_HELD:
            exchange.early = pieces
            return None
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        pieces.append(piece)
    return b"".join(pieces)


async def enter(exchange: Exchange, route: Route) -> None:
    """Take a place at the upstream, waiting for it if need be.

    Raises:
        Refusal: 503 where the queue is full, the wait too long, or the upstream is known to be down.
    """
    guard = route.upstream.guard
    try:
        if not guard.try_enter():
            began = perf_counter()
            try:
                await guard.enter()
            finally:
                queued = perf_counter() - began
                exchange.waited += queued
                exchange.row.queue_seconds = (exchange.row.queue_seconds or 0.0) + queued
        elif exchange.row.queue_seconds is None:
            exchange.row.queue_seconds = 0.0
    except Refused as error:
        raise Refusal(503, error.error_type, error.message, retry_after=error.retry_after) from None
    exchange.entered = guard


async def _send_with_retries(
    gateway: Gateway, exchange: Exchange, route: Route, body: bytes, target: bytes
) -> Response:
    upstream, row = route.upstream, exchange.row
    headers = upstream.headers_with(gateway.passed_on(exchange, route))
    attempt = 0
    while True:
        await enter(exchange, route)
        exchange.begin_metering()
        began = perf_counter()
        status: int | None = None
        retry_after: bytes | None = None
        failure: UpstreamError | None = None
        response: Response | None = None
        try:
            response = await upstream.pool.send(b"POST", target, headers, body, timeout=gateway.request_seconds)
        except UpstreamError as error:
            failure = error
        finally:
            exchange.waited += perf_counter() - began
        if response is not None:
            row.connect_seconds = response.connect_seconds
            status = response.status
            if status not in retrying.RETRIED_STATUSES:
                exchange.succeeded = status < 500
                return response
            retry_after = response.header(b"retry-after")
        attempt += 1
        wait = retrying.delay(attempt, status, retry_after, error=failure)
        # Being told to slow down is an answer; anything else that is retried is a failure.
        exchange.succeeded = status is not None and status < 500
        if wait is None and response is not None:
            return response
        if response is not None:
            response.close()
        exchange.leave()
        if wait is None:
            raise refusal_of(failure or Reset("no answer"), route) from failure
        row.retries = attempt
        began = perf_counter()
        await asyncio.sleep(wait)
        exchange.waited += perf_counter() - began


def refusal_of(error: UpstreamError, route: Route) -> Refusal:
    """What the client is told of an upstream that failed before anything of its answer was passed on."""
    if isinstance(error, PoolBusy):
        return Refusal(503, error.error_type, f"{route.upstream.name}: {error}", retry_after=1)
    status = 504 if error.error_type == "upstream_timeout" else 502
    return Refusal(status, error.error_type, f"{route.upstream.name}: {error}")

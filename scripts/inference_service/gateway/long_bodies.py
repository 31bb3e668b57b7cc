"""Requests whose body is too long to be held: passed on while they arrive, to 512 MiB, in flat memory.

Where such a request goes stands somewhere inside it. Until that has passed by, what arrived is kept on disk. It is sent
once: a failure is told, not retried. A limited caller's request, and one whose length the upstream has to be told and
nobody knows, wait on disk until they are complete.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from time import perf_counter
from typing import IO, TYPE_CHECKING

from inference_service import metering
from inference_service.gateway import converting, forwarding, relaying
from inference_service.gateway.body_scan import BodyScan
from inference_service.gateway.refusals import ANTHROPIC, Refusal
from inference_service.gateway.upstream.errors import UpstreamError
from inference_service.request_log import bodies

if TYPE_CHECKING:
    from inference_service.callers.caller import Caller
    from inference_service.gateway.exchange import Exchange
    from inference_service.gateway.routing import Route

LONGEST_HELD = 1 << 20
LONGEST = 512 << 20
_PIECE = 256 << 10
_WANTED = ("model", "stream", "max_tokens", "max_completion_tokens", "n", "stream_options")


class _LongBody:
    """The body as it arrives: what was read so far is in memory or on disk, the rest is still to come."""

    def __init__(self, exchange: Exchange, length: int | None) -> None:
        self.length = length
        self.scan = BodyScan(_WANTED)
        self.read = 0
        self.complete = False
        self._exchange = exchange
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=LONGEST_HELD)  # noqa: SIM115
        for piece in exchange.early:
            self._look(piece)
            self._spool.write(piece)
        exchange.early = []

    async def until(self, name: str) -> None:
        """Read until the field has been seen, or all."""
        while not self.complete and name not in self.scan.values:
            piece = await self._next()
            self._spool.write(piece)

    async def until_complete(self) -> None:
        """Read all of it."""
        while not self.complete:
            self._spool.write(await self._next())

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, from the beginning."""
        self._spool.seek(0)
        while piece := self._spool.read(_PIECE):
            yield piece
        self._spool.close()
        while not self.complete:
            piece = await self._next()
            if self._is_cut_short():
                raise Refusal(400, "invalid_request", "the body is not a complete JSON object")
            yield piece

    def close(self) -> None:
        """Let go of the disk."""
        self._spool.close()

    def _is_cut_short(self) -> bool:
        return self.complete and not self.scan.ended

    async def _next(self) -> bytes:
        began = perf_counter()
        message = await self._exchange.receive()
        self._exchange.waited += perf_counter() - began
        if message["type"] == "http.disconnect":
            raise forwarding.ClientGone
        piece: bytes = message.get("body", b"")
        self._look(piece)
        self.complete = not message.get("more_body")
        return piece

    def _look(self, piece: bytes) -> None:
        self.read += len(piece)
        exchange = self._exchange
        if exchange.kept_response is not None and len(exchange.kept_request) < bodies.MOST_BYTES:
            exchange.kept_request += piece[: bodies.MOST_BYTES]
        if self.read > LONGEST:
            raise _too_long()
        self.scan.feed(piece)
        if self.scan.malformed:
            raise Refusal(400, "invalid_request", "the body is not a JSON object")
        if self.scan.duplicate:
            raise Refusal(
                400, "invalid_request", f"{self.scan.duplicate} stands twice in the body", param=self.scan.duplicate
            )


async def forward(exchange: Exchange, caller: Caller) -> None:
    """Route and pass on a long body.

    Raises:
        Refusal: it is not.
    """
    gateway = exchange.gateway
    said = exchange.headers.get(b"content-length")
    length = int(said) if said is not None else None
    if length is not None and length > LONGEST:
        raise _too_long()
    body = _LongBody(exchange, length)
    try:
        await body.until("model")
        route = gateway.route_for(body.scan.values.get("model"))
        exchange.routed(route, gateway.price_for(route))
        exchange.asked_model = str(body.scan.values["model"])
        forwarding.permit(exchange, caller, route)
        if route.shape != exchange.shape:
            raise Refusal(
                413,
                "invalid_request",
                f"a body of more than {LONGEST_HELD} bytes is passed on as it is, and {route.model} is asked by"
                f" POST {'/v1/messages' if route.shape == ANTHROPIC else '/v1/chat/completions'}",
            )
        if caller.limited or length is None:
            await body.until_complete()
            length = body.read
        exchange.row.request_bytes = length
        if caller.limited:
            values = body.scan.values
            await forwarding.admit(
                exchange, caller, route, metering.input_upper_bound(length), converting.most_output(values)
            )
        await _send(exchange, route, body, length)
    finally:
        body.close()


async def _send(exchange: Exchange, route: Route, body: _LongBody, length: int) -> None:
    gateway = exchange.gateway
    upstream = route.upstream
    await forwarding.enter(exchange, route)
    exchange.body_bytes = length
    exchange.begin_metering()
    try:
        began = perf_counter()
        response = await upstream.pool.send(
            b"POST",
            upstream.target,
            upstream.headers_with(gateway.passed_on(exchange, route)),
            body.pieces(),
            timeout=gateway.request_seconds,
            length=length,
        )
        exchange.waited += perf_counter() - began
        exchange.row.connect_seconds = response.connect_seconds
        exchange.succeeded = response.status < 500
        streaming = (response.header(b"content-type") or b"").startswith(b"text/event-stream")
        exchange.row.stream = streaming
        try:
            await relaying.relay(exchange, route, response, streaming=streaming, include_usage=True)
        finally:
            response.close()
    except UpstreamError as error:
        raise forwarding.refusal_of(error, route) from error
    finally:
        exchange.leave()


def _too_long() -> Refusal:
    return Refusal(413, "invalid_request", f"the body is longer than {LONGEST} bytes")

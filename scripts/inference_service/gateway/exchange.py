"""One request in hand: what is known of it, what was answered, and the row that it leaves, exactly one.

The row is written when all is known and before the last byte goes out, so that who has the whole answer has a row. What
a request reserved (budget, a place at the upstream) is given back when it ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from inference_service import metering
from inference_service.callers import money
from inference_service.gateway import refusals
from inference_service.gateway.refusals import Refusal
from inference_service.gateway.tapping import Shape
from inference_service.request_log import bodies
from inference_service.request_log.rows import RequestRow

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from inference_service.callers.caller import Caller
    from inference_service.callers.pools import Admission
    from inference_service.gateway.gateway import Gateway
    from inference_service.gateway.protocol import Protocol
    from inference_service.gateway.routing import Route
    from inference_service.gateway.tapping import StreamReader
    from inference_service.gateway.tracing import Trace
    from inference_service.gateway.upstream.guard import Guard
    from inference_service.metering import Usage
    from inference_service.model_price import ModelPrice

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Headers = Sequence[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")

NOT_SENT = "not_sent"
_FAILED = "failed"
_FREE = "free"


class Exchange:
    """From the first byte of a request to its row. All times are perf_counter's, in seconds."""

    __slots__ = (
        "admission",
        "answered_bytes",
        "arrived",
        "asked_model",
        "body_bytes",
        "caller",
        "cycle",
        "early",
        "entered",
        "eventful",
        "free",
        "gateway",
        "headers",
        "kept_request",
        "kept_response",
        "metered",
        "price",
        "produced_bytes",
        "protocol",
        "reader",
        "receive",
        "recorded",
        "route",
        "row",
        "send",
        "sent_upstream",
        "shape",
        "started",
        "succeeded",
        "trace",
        "translated",
        "usage",
        "waited",
    )

    def __init__(
        self,
        gateway: Gateway,
        protocol: Protocol,
        cycle: RequestResponseCycle,
        arrived: float,
        path: str,
        shape: Shape,
        receive: Receive,
        send: Send,
    ) -> None:
        self.gateway = gateway
        self.protocol = protocol
        self.cycle = cycle
        self.arrived = arrived
        self.shape = shape
        self.receive = receive
        self.send = send
        self.headers: Mapping[bytes, bytes] = {}
        self.row = RequestRow(
            request_id=gateway.next_request_id(),
            time=time() - (perf_counter() - arrived),
            route=path,
            gateway=gateway.name,
        )
        self.caller: Caller | None = None
        self.route: Route | None = None
        self.price: ModelPrice | None = None
        self.admission: Admission | None = None
        self.usage: Usage | None = None
        # What the service's meter gave when the request was sent: its share of the GPU runs since then.
        self.metered: Any = None
        self.sent_upstream = False
        self.started = False
        self.eventful = False
        self.recorded = False
        # Waiting for others: a place, the upstream, a client that reads slowly. The rest of the total is our own work.
        self.waited = 0.0
        self.answered_bytes = 0
        self.asked_model = ""
        self.translated: dict[str, Any] | None = None
        # What was read of a body before it turned out to be too long to be held.
        self.early: list[bytes] = []
        # What usage is estimated from where none was told: the stream that is being read along with, the sizes of the
        # body and of an unstreamed answer's text.
        self.reader: StreamReader | None = None
        self.body_bytes = 0
        self.produced_bytes = 0
        # What is asked costs nothing at the upstream.
        self.free = False
        # The place that was taken at the upstream, and whether what was done there counts as a success.
        self.entered: Guard | None = None
        self.succeeded: bool | None = None
        self.trace: Trace | None = None
        # The beginnings of both bodies, where bodies are kept (--log-bodies).
        self.kept_request = b""
        self.kept_response: bytearray | None = bytearray() if gateway.bodies is not None else None

    def routed(self, route: Route, price: ModelPrice | None) -> None:
        """Note where it goes."""
        self.route = route
        self.price = price
        row = self.row
        row.model = route.model
        row.network_arch = route.network_arch
        row.platform = route.platform
        row.job_id = route.job_id

    def begin_metering(self) -> None:
        """It is about to be sent: from here on it is not free, and it uses the service."""
        self.sent_upstream = True
        route = self.route
        if route is not None and route.meter is not None and self.metered is None:
            self.metered = route.meter.begin()

    def leave(self) -> None:
        """Give back the place at the upstream."""
        if self.entered is not None:
            self.entered.leave(self.succeeded)
            self.entered = None

    def abandoned(self) -> None:
        """The client is gone, or the gateway is ending: nobody waits for an answer any more, but the row is due."""
        if self.recorded:
            return
        self.row.error_type = (
            "draining" if self.gateway.draining and not self.cycle.disconnected else "client_disconnected"
        )
        # Giving up says nothing about the upstream.
        self.succeeded = None
        self.record(perf_counter())
        self.gateway.observe(self)

    async def answer(
        self, status: int, body: bytes, headers: Headers = (), content_type: tuple[bytes, bytes] = JSON
    ) -> None:
        """Answer with this whole body, once the row is durable."""
        row = self.row
        row.http_status = status
        now = perf_counter()
        row.first_byte_seconds = now - self.arrived
        self.answered_bytes = len(body)
        if self.kept_response is not None:
            self._keep(self.kept_response, body)
        durable = self.record(now)
        if durable is not None:
            await durable
        request_id = row.request_id.encode("ascii")
        lines = b"%b: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\nrequest-id: %b\r\n" % (
            *content_type,
            len(body),
            request_id,
            request_id,
        )
        for header in headers:
            lines += b"%b: %b\r\n" % header
        if self.gateway.draining:
            self.cycle.keep_alive = False
        self.started = True
        self.protocol.answer(self.cycle, status, lines, body)
        self.gateway.observe(self)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and the headers."""
        self.started = True
        self.eventful = EVENT_STREAM in headers
        request_id = self.row.request_id.encode("ascii")
        own = [(b"x-request-id", request_id), (b"request-id", request_id)]
        if self.gateway.draining:
            own.append((b"connection", b"close"))
        # Every start is followed by a body, at the latest by its end.
        self.protocol.joining.hold_next()
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *own]})

    async def piece(self, body: bytes) -> None:
        """Send a piece of a stream, and wait while the client is too slow for it."""
        self.answered_bytes += len(body)
        if self.kept_response is not None:
            self._keep(self.kept_response, body)
        if self.protocol.flow.write_paused:
            began = perf_counter()
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            self.waited += perf_counter() - began
        else:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def last_piece(self, body: bytes) -> None:
        """Record the request, then send the last piece of its stream."""
        self.answered_bytes += len(body)
        if self.kept_response is not None:
            self._keep(self.kept_response, body)
        durable = self.record(perf_counter())
        if durable is not None:
            await durable
        await self.send({"type": "http.response.body", "body": body})
        self.gateway.observe(self)

    async def refuse(self, refusal: Refusal) -> None:
        """Say why there is no answer, or no more of it."""
        self.row.error_type = refusal.type
        if self.started and not self.eventful:
            # Half of an answer whose length was told: only a connection that breaks says that it is not all.
            self.record(perf_counter())
            self.protocol.transport.abort()
            self.gateway.observe(self)
            return
        if self.started:
            await self.last_piece(refusals.event(refusal, self.shape, self.row.request_id))
            return
        headers = refusal.headers()
        if self.cycle.more_body:
            # What the client still sends would be taken for its next request.
            self.cycle.keep_alive = False
        await self.answer(refusal.status, refusals.body(refusal, self.shape, self.row.request_id), headers)

    def record(self, now: float) -> Awaitable[None] | None:
        """Write the row; what to wait for before the answer's last byte goes out, None when it is durable already."""
        if self.recorded:
            return None
        self.recorded = True
        row = self.row
        if self.reader is not None:
            self.usage = self.reader.usage
            if self.usage is None or not self.reader.finished:
                self.usage = self.reader.estimate(self.body_bytes)
        elif self.usage is None and self.sent_upstream and not self.free and self._was_worked_on():
            # Its prompt was read, at the least: a budget must not be evaded by leaving before the answer.
            self.usage = metering.estimate(
                None, body_bytes=self.body_bytes, produced_bytes=self.produced_bytes, deltas=0
            )
        row.total_seconds = total = now - self.arrived
        row.overhead_seconds = max(0.0, total - self.waited)
        row.response_bytes = self.answered_bytes
        self._price()
        if self.admission is not None:
            usage, cost = self.usage, row.cost_usd
            tokens = usage.input_tokens + usage.output_tokens if usage is not None else 0
            if cost is not None:
                spent: int | None = money.nano_usd(cost)
            elif usage is not None and self.price is not None:
                # A part of it has no price (a fast mode, a search): what is not known must not look free to a budget.
                spent = self.price.upper_bound_nano_usd(usage.input_tokens, usage.output_tokens)
            else:
                spent = None
            self.admission.settle(tokens, spent)
            self.admission = None
        return self.gateway.recorder.record(row)

    @staticmethod
    def _keep(kept: bytearray, body: bytes) -> None:
        missing = bodies.MOST_BYTES - len(kept)
        if missing > 0:
            kept += body[:missing]

    def _was_worked_on(self) -> bool:
        """Whether the upstream worked on it although it told no usage: it was not refused, nor out of reach."""
        row = self.row
        if row.error_type in ("upstream_timeout", "upstream_cut"):
            return True
        return (row.http_status or 200) < 400 and row.error_type in (None, "client_disconnected", "draining")

    def _price(self) -> None:
        row, usage, route = self.row, self.usage, self.route
        if usage is not None:
            row.input_tokens = usage.input_tokens
            row.output_tokens = usage.output_tokens
            row.cached_tokens = usage.cached_tokens
            row.cache_write_5m_tokens = usage.cache_write_5m_tokens
            row.cache_write_1h_tokens = usage.cache_write_1h_tokens
            row.usage_estimated = usage.estimated
        if self.metered is not None and route is not None and route.meter is not None:
            row.cost_usd = route.meter.end(self.metered)
            row.priced_by = route.meter.priced_by
            self.metered = None
        elif not self.sent_upstream:
            row.cost_usd, row.priced_by = self.gateway.zero, NOT_SENT
        elif self.free:
            row.cost_usd, row.priced_by = self.gateway.zero, _FREE
        elif usage is None and row.http_status is not None and row.http_status >= 400 and route and not route.job_id:
            # The vendor bills no request that it answers with an error.
            row.cost_usd, row.priced_by = self.gateway.zero, _FAILED
        elif usage is not None and self.price is not None:
            row.cost_usd = self.price.cost(usage)
            if row.cost_usd is not None:
                row.priced_by = self.price.priced_by

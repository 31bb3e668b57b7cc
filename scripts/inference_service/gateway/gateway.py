"""The gateway as an ASGI application: what it knows, and which request is for whom.

What changes while it runs (routes, prices, callers) is replaced whole, never changed in place: a request that is under
way keeps what it began with.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from inference_service.callers.caller import Caller
from inference_service.callers.refusals import LimitExceeded, LimitsUnavailable
from inference_service.gateway import endpoints
from inference_service.gateway.credentials import digest, key_of, matches
from inference_service.gateway.exchange import NOT_SENT, Exchange, Receive, Send
from inference_service.gateway.forwarding import forward
from inference_service.gateway.metrics_snapshot import Gauges
from inference_service.gateway.refusals import ANTHROPIC, Refusal
from inference_service.gateway.tracing import upstream_traceparent
from inference_service.gateway.upstreams import MODEL_PATHS
from inference_service.request_log.rows import RequestRow

if TYPE_CHECKING:
    from inference_service.callers.accounts import Accounts
    from inference_service.callers.pools import Admission
    from inference_service.gateway.metrics import Metrics
    from inference_service.gateway.metrics_snapshot import SnapshotFiles
    from inference_service.gateway.routing import Route, RouteTable
    from inference_service.gateway.settings import Settings
    from inference_service.gateway.tracing import Tracing
    from inference_service.gateway.vendor import Vendor
    from inference_service.model_price import ModelPrice
    from inference_service.request_log.bodies import BodyLog
    from inference_service.request_log.recorder import Recorder
    from inference_service.sql import Database
    from inference_service.token_pricing import PriceTable

log = logging.getLogger("gateway")

_MOST_TOLD = 1000
LIVE = "live"
"""Where a worker's snapshot has its requests under way."""
_LOOPBACK_HOSTS = (b"localhost", b"127.0.0.1", b"[::1]")

OWNER = Caller(id="owner", name="owner")
ANONYMOUS = Caller(id="anonymous", name="anonymous")


class Gateway:
    """One process's gateway. `server.py` fills in what it is made of and keeps it up to date."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        database: Database,
        accounts: Accounts,
        recorder: Recorder,
        metrics: Metrics,
        request_seconds: float,
        bodies: BodyLog | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.accounts = accounts
        self.recorder = recorder
        self.metrics = metrics
        self.request_seconds = request_seconds
        self.routes: RouteTable
        # Takes over what has changed in the registry.
        self.look: Callable[[], None] = lambda: None
        self.prices: PriceTable
        self.live: dict[str, Exchange] = {}
        self.draining = False
        self.vendor: Vendor | None = None
        self._told_unpriced: set[str] = set()
        self.callers_known = False
        # Each gets the row of every finished request.
        self.observers: list[Callable[[RequestRow], None]] = []
        self.tracing: Tracing | None = None
        self.snapshots: SnapshotFiles | None = None
        self.started_at = time()
        self.last_request_time: float | None = None
        self.admin_digest = digest(settings.admin_key)
        self.zero = Decimal(0)
        self.bodies = bodies
        self.name = name
        self._id_prefix = secrets.token_hex(8)
        self._ids = 0
        self._owner_digest = digest(settings.owner_key)

    @property
    def started_at_text(self) -> str:
        """When it was started, ISO 8601 in UTC."""
        return (
            datetime.fromtimestamp(self.started_at, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        )

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        shape = MODEL_PATHS.get(scope["path"])
        if shape is not None and scope["method"] == "POST":
            await forward(self, scope, receive, send, shape)
        else:
            await endpoints.respond(self, scope, receive, send)

    def malformed(self, status: int, arrived: float) -> None:
        """Leave a row for what came over a connection and was no HTTP request."""
        self.leave(self.refused_row(self.next_request_id(), arrived, "", status, "invalid_http"))

    def refused_row(self, request_id: str, arrived: float, route: str, status: int, error_type: str) -> RequestRow:
        """The row of a request that is refused now, before it was for any model."""
        elapsed = perf_counter() - arrived
        return RequestRow(
            request_id=request_id,
            time=time() - elapsed,
            route=route,
            http_status=status,
            error_type=error_type,
            total_seconds=elapsed,
            cost_usd=self.zero,
            priced_by=NOT_SENT,
            gateway=self.name,
        )

    def leave(self, row: RequestRow) -> None:
        """Record and count such a row."""
        self.recorder.record(row)
        self.metrics.observe(row)

    def next_request_id(self) -> str:
        """Unique among all gateways."""
        self._ids += 1
        return f"req_{self._id_prefix}{self._ids:012x}"

    def known_caller(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Whose key the request carries; None for a key that this process does not know, or none at all.

        Raises:
            Refusal: without keys (--no-auth), a request that a web page could have made its reader's browser send.
        """
        if self.settings.no_auth:
            _require_local_client(headers)
            return ANONYMOUS
        key = key_of(headers)
        return None if key is None else self.accounts.authenticate(key)

    async def unknown_caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """The caller of a key that is new since the last look at the database.

        Raises:
            Refusal: 401, the same for every reason there is.
        """
        key = key_of(headers)
        if key is not None:
            if matches(key, self._owner_digest):
                return OWNER
            try:
                caller = await self.accounts.find(key)
            except LimitsUnavailable as error:
                raise Refusal(503, error.error_type, str(error), retry_after=error.retry_after) from None
            if caller is not None:
                return caller
        raise Refusal(
            401,
            "unauthenticated",
            "no valid API key: send the one that callers.py add has shown, as `Authorization: Bearer KEY` or"
            " `x-api-key: KEY`",
        )

    async def admit_slowly(self, caller: Caller, tokens: int, nano_usd: int, at: float) -> Admission:
        """What `Accounts.admit` gives.

        Raises:
            Refusal: 429 with the limit that would be passed; 503 where limits cannot be looked up.
        """
        try:
            return await self.accounts.admit(caller, tokens, nano_usd, at)
        except LimitExceeded as error:
            raise Refusal(429, error.error_type, str(error), retry_after=error.retry_after) from None
        except LimitsUnavailable as error:
            raise Refusal(503, error.error_type, str(error), retry_after=error.retry_after) from None

    def route_for(self, model: object) -> Route:
        """Where requests for this `model` go; a service that was started a moment ago is looked for in the registry.

        Raises:
            Refusal: as `RouteTable.resolve`.
        """
        try:
            return self.routes.resolve(model)
        except Refusal as refusal:
            if refusal.status != 404:
                raise
        self.look()
        return self.routes.resolve(model)

    def price_for(self, route: Route) -> ModelPrice | None:
        """What its tokens cost now; None for a service of our own and for a model without a price."""
        return None if route.job_id is not None else self.prices.for_model(route.model, time())

    def passed_on(self, exchange: Exchange, route: Route) -> Mapping[bytes, bytes] | None:
        """The headers that the upstream gets beside its fixed ones."""
        more: dict[bytes, bytes] = {}
        if route.shape == ANTHROPIC:
            headers = exchange.headers
            version = headers.get(b"anthropic-version", b"2023-06-01")
            more[b"anthropic-version"] = version if _is_token(version) else b"2023-06-01"
            beta = headers.get(b"anthropic-beta")
            if beta and exchange.shape == ANTHROPIC and _is_token(beta):
                more[b"anthropic-beta"] = beta
        traceparent = (
            exchange.trace.traceparent if exchange.trace is not None else upstream_traceparent(exchange.headers)
        )
        if traceparent is not None:
            more[b"traceparent"] = traceparent
        return more or None

    def observe(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        row = exchange.row
        self.last_request_time = row.time
        self.metrics.observe(row)
        if row.cost_usd is None:
            self._tell_unpriced(row)
        for observer in self.observers:
            observer(row)
        if self.tracing is not None and exchange.trace is not None:
            self.tracing.observe(row, exchange.trace)
        if self.bodies is not None:
            self.bodies.record(
                row.request_id,
                row.time,
                exchange.kept_request,
                bytes(exchange.kept_response or b""),
                request_bytes=row.request_bytes,
                response_bytes=exchange.answered_bytes,
            )

    def _tell_unpriced(self, row: RequestRow) -> None:
        """Once for each model: what has no price is no small matter to whoever pays."""
        model = row.model or ""
        if model not in self._told_unpriced and len(self._told_unpriced) < _MOST_TOLD:
            self._told_unpriced.add(model)
            log.warning(
                "requests to %s are unpriced: they have no cost in the log until the file that TAO_INF_PRICING names"
                " has their price",
                row.job_id or model,
            )

    def why_not_ready(self) -> tuple[str, str] | None:
        """A word of the services' readiness (references/request.yaml) and a sentence; None where requests are taken."""
        if self.draining:
            return "server_draining", "the gateway is ending"
        if self.recorder.refusing is not None:
            return "server_initializing", self.recorder.refusing
        if not self.callers_known and not self.settings.no_auth:
            return "server_initializing", "the callers could not be read from the database yet"
        if self.vendor is None or self.vendor.keeps_waiting():
            return None
        return self.vendor.problem

    def gauges(self) -> Gauges:
        """What is true of this process at this moment."""
        in_flight: dict[str, int] = {}
        for exchange in self.live.values():
            label = exchange.route.label if exchange.route is not None else ""
            in_flight[label] = in_flight.get(label, 0) + 1
        guards = {route.upstream.name: route.upstream.guard for route in self.routes.routes()}
        return Gauges(
            in_flight=in_flight,
            queued={name: guard.queued for name, guard in guards.items()},
            breakers={name: guard.state for name, guard in guards.items()},
            journal_rows=self.recorder.waiting,
            journal_bytes=self.recorder.journal_bytes,
        )

    def live_requests(self) -> list[dict[str, Any]]:
        """The requests of all workers that are under way: this one's as they are, the others' as of a second ago."""
        others = self.snapshots.others() if self.snapshots is not None else ()
        return [*self.own_live_requests(), *(request for snapshot in others for request in snapshot.get(LIVE, ()))]

    def own_live_requests(self) -> list[dict[str, Any]]:
        """The requests of this process that are under way, the oldest first."""
        now = perf_counter()
        return [
            {
                "request_id": request_id,
                "caller": exchange.row.caller,
                "team": exchange.row.team,
                "model": exchange.row.model,
                "route": exchange.row.route,
                "stream": exchange.row.stream,
                "seconds": round(now - exchange.arrived, 3),
                "response_bytes": exchange.answered_bytes,
            }
            for request_id, exchange in self.live.items()
        ]


def _is_token(value: bytes) -> bool:
    return len(value) <= 400 and all(0x20 < letter < 0x7F for letter in value)


def _require_local_client(headers: Mapping[bytes, bytes]) -> None:
    """Without keys, whoever reaches the port may spend. A web page can make a browser on this machine send requests,
    but not with this content type, and not under a name of this machine once it is bound to the page's own name."""
    if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
        raise Refusal(415, "invalid_request", "send the body with Content-Type: application/json", param="Content-Type")
    host = headers.get(b"host", b"").lower()
    name = host.rpartition(b":")[0] if host.rpartition(b":")[2].isdigit() else host
    if name not in _LOOPBACK_HOSTS:
        raise Refusal(403, "invalid_request", "without keys only localhost and 127.0.0.1 are served", param="Host")

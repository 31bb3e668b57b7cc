"""The gateway as an ASGI application: what it knows, and which request is for whom.

What changes while it runs (routes, prices, callers) is replaced whole, never changed in place: a request that is under
way keeps what it began with.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Mapping
from decimal import Decimal
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from inference_service.callers.caller import Caller
from inference_service.callers.refusals import LimitExceeded, LimitsUnavailable
from inference_service.gateway import endpoints
from inference_service.gateway.exchange import Exchange, Receive, Send
from inference_service.gateway.forwarding import forward
from inference_service.gateway.refusals import ANTHROPIC, Refusal
from inference_service.gateway.upstreams import PATHS
from inference_service.request_log.rows import RequestRow

if TYPE_CHECKING:
    from inference_service.callers.accounts import Accounts
    from inference_service.callers.pools import Admission
    from inference_service.gateway.metrics import Metrics
    from inference_service.gateway.routing import Route, RouteTable
    from inference_service.gateway.settings import Settings
    from inference_service.request_log.recorder import Recorder
    from inference_service.token_pricing import ModelPrice, PriceTable

log = logging.getLogger("gateway")

_MODEL_PATHS = {path.decode(): shape for shape, path in PATHS.items()}
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
        accounts: Accounts,
        recorder: Recorder,
        metrics: Metrics,
        request_seconds: float,
    ) -> None:
        self.settings = settings
        self.accounts = accounts
        self.recorder = recorder
        self.metrics = metrics
        self.request_seconds = request_seconds
        self.routes: RouteTable
        self.prices: PriceTable
        self.live: dict[str, Exchange] = {}
        self.draining = False
        self.observers: list[Any] = []
        self.zero = Decimal(0)
        self.log_bodies = settings.log_bodies
        self.name = name
        self._id_prefix = secrets.token_hex(8)
        self._ids = 0
        self._owner_digest = hashlib.sha256(settings.owner_key.encode()).digest() if settings.owner_key else None

    @property
    def refusing(self) -> str | None:
        """Why no request can be taken, None where they can."""
        return self.recorder.refusing

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        shape = _MODEL_PATHS.get(scope["path"])
        if shape is not None and scope["method"] == "POST":
            await forward(self, scope, receive, send, shape)
        else:
            await endpoints.respond(self, scope, receive, send)

    def malformed(self, status: int, arrived: float) -> None:
        """Leave a row for what came over a connection and was no HTTP request."""
        now = perf_counter()
        row = RequestRow(
            request_id=self.next_request_id(),
            time=time() - (now - arrived),
            route="",
            http_status=status,
            error_type="invalid_http",
            total_seconds=now - arrived,
            cost_usd=self.zero,
            priced_by="not_sent",
            gateway=self.name,
        )
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
            if self._owner_digest and hmac.compare_digest(hashlib.sha256(key).digest(), self._owner_digest):
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
            "no valid API key: send the one that callers.py add has shown as `Authorization: Bearer KEY` or `x-api-key: KEY`",
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

    def price_for(self, route: Route) -> ModelPrice | None:
        """What its tokens cost now; None for a service of our own and for a model without a price."""
        return None if route.job_id is not None else self.prices.for_model(route.model, time())

    def passed_on(self, exchange: Exchange) -> Mapping[bytes, bytes] | None:
        """The headers that the upstream gets beside its fixed ones."""
        route = exchange.route
        assert route is not None
        more: dict[bytes, bytes] = {}
        if route.shape == ANTHROPIC:
            headers = exchange.headers
            version = headers.get(b"anthropic-version", b"2023-06-01")
            more[b"anthropic-version"] = version if _is_token(version) else b"2023-06-01"
            beta = headers.get(b"anthropic-beta")
            if beta and exchange.shape == ANTHROPIC and _is_token(beta):
                more[b"anthropic-beta"] = beta
        if b"traceparent" in exchange.headers and self.traceparent is not None:
            passed = self.traceparent(exchange.headers)
            if passed is not None:
                more[b"traceparent"] = passed
        return more or None

    traceparent: Any = None

    def record(self, exchange: Exchange) -> Awaitable[None] | None:
        """Write the exchange's row; what to wait for until it is durable."""
        return self.recorder.record(exchange.row, exchange.kept)

    def observe(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        row = exchange.row
        self.metrics.observe(row)
        for observer in self.observers:
            observer(row)


def key_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The API key of a request: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        return authorization[7:].strip() if authorization[:7].lower() == b"bearer " else None
    return headers.get(b"x-api-key")


def _is_token(value: bytes) -> bool:
    return len(value) <= 400 and all(0x20 < letter < 0x7F for letter in value)


def _require_local_client(headers: Mapping[bytes, bytes]) -> None:
    """Without keys, whoever reaches the port may spend. A web page can make a browser on this machine send requests, but
    not with this content type, and not under a name of this machine once it is bound to the page's own name."""
    if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
        raise Refusal(415, "invalid_request", "send the body with Content-Type: application/json", param="Content-Type")
    host = headers.get(b"host", b"").lower()
    name = host.rpartition(b":")[0] if host.rpartition(b":")[2].isdigit() else host
    if name not in _LOOPBACK_HOSTS:
        raise Refusal(403, "invalid_request", "without keys only localhost and 127.0.0.1 are served", param="Host")

"""Everything but models' traffic: health, the list of models, a caller's own usage, metrics, the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import time
from typing import TYPE_CHECKING, Any

import orjson

from inference_service import paths
from inference_service.errors import ToolError
from inference_service.gateway import refusals
from inference_service.gateway.answers import Answer, Request
from inference_service.gateway.credentials import key_of, matches
from inference_service.gateway.refusals import ANTHROPIC, OPENAI, Refusal
from inference_service.gateway.upstreams import MODEL_PATHS

if TYPE_CHECKING:
    from inference_service.callers.caller import Caller
    from inference_service.gateway.gateway import Gateway

Endpoint = Callable[["Gateway", Request], Awaitable[Answer]]


async def respond(gateway: Gateway, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    """Answer a request to one of these endpoints; what is none of them gets 404 or 405, and a row if it wanted to do
    more than look."""
    headers = dict(scope["headers"])
    request = Request(scope["method"], scope["path"], scope["query_string"].decode("latin-1"), headers)
    shape = ANTHROPIC if b"anthropic-version" in headers else OPENAI
    request_id = gateway.next_request_id()
    refusal: Refusal | None = None
    try:
        answer = await _answer(gateway, request)
    except Refusal as error:
        refusal = error
        answer = Answer(error.status, refusals.body(error, shape, request_id), headers=error.headers())
    lines = [
        (b"content-type", answer.content_type),
        (b"content-length", b"%d" % len(answer.body)),
        (b"x-request-id", request_id.encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        *answer.headers,
    ]
    if gateway.draining or scope["tao.cycle"].more_body:
        lines.append((b"connection", b"close"))
    if refusal is not None and request.method not in ("GET", "HEAD"):
        _record(gateway, scope, request_id, refusal)
    await send({"type": "http.response.start", "status": answer.status, "headers": lines})
    await send({"type": "http.response.body", "body": answer.body})


async def _answer(gateway: Gateway, request: Request) -> Answer:
    endpoint = _ENDPOINTS.get(request.path)
    if endpoint is None and request.path.startswith("/v1/models/"):
        endpoint = _model
    if endpoint is None:
        if request.path in MODEL_PATHS:
            raise Refusal(405, "invalid_request", f"{request.path} takes POST")
        hint = (
            f"do you mean /v1{request.path}? " if f"/v1{request.path}" in MODEL_PATHS.keys() | _ENDPOINTS.keys() else ""
        )
        raise Refusal(
            404, "unknown_endpoint", f"there is no such endpoint; {hint}GET /openapi.json lists what there is"
        )
    if request.method not in ("GET", "HEAD"):
        raise Refusal(405, "invalid_request", f"{request.path} takes GET")
    return await endpoint(gateway, request)


def _record(gateway: Gateway, scope: Mapping[str, Any], request_id: str, refusal: Refusal) -> None:
    # An address that we do not have is the client's text: it may hold a key, and would be a line in reports.
    route = scope["path"] if scope["path"] in _ENDPOINTS or scope["path"] in MODEL_PATHS else "other"
    row = gateway.refused_row(request_id, scope["tao.arrived"], route, refusal.status, refusal.type)
    row.overhead_seconds = row.total_seconds
    key = key_of(dict(scope["headers"]))
    caller = gateway.accounts.authenticate(key) if key is not None else None
    if caller is not None:
        row.caller, row.caller_id, row.team, row.project = caller.name, caller.id, caller.team, caller.project
    gateway.leave(row)


async def _liveness(gateway: Gateway, request: Request) -> Answer:
    ready = not gateway.why_not_ready()
    document = {
        "status": "alive",
        "job_id": gateway.settings.job_id,
        "model_loaded": ready,
        "model_loading": not ready,
        "server_initializing": False,
        "draining": gateway.draining,
        "last_request_time": gateway.last_request_time,
        "idle_time_minutes": round((time() - (gateway.last_request_time or gateway.started_at)) / 60, 3),
    }
    return Answer(200, orjson.dumps(document))


async def _readiness(gateway: Gateway, request: Request) -> Answer:
    why = gateway.why_not_ready()
    if why is None:
        document = {"status": "ready", "job_id": gateway.settings.job_id, "message": "the gateway takes requests"}
        return Answer(200, orjson.dumps(document))
    reason, message = why
    document = {"status": "not_ready", "reason": reason, "message": message, "job_id": gateway.settings.job_id}
    return Answer(503, orjson.dumps(document))


async def _models(gateway: Gateway, request: Request) -> Answer:
    caller = await _caller(gateway, request)
    data = [_model_document(name, gateway) for name in gateway.routes.choices() if _may_see(gateway, caller, name)]
    # Both vendors' lists at once: their SDKs read the keys that they know.
    document = {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
    return Answer(200, orjson.dumps(document))


async def _model(gateway: Gateway, request: Request) -> Answer:
    caller = await _caller(gateway, request)
    name = request.path.removeprefix("/v1/models/")
    gateway.routes.resolve(name)
    if not _may_see(gateway, caller, name):
        raise Refusal(403, "model_not_allowed", f"{caller.name} may not use {name!r}", param="model")
    return Answer(200, orjson.dumps(_model_document(name, gateway)))


def _may_see(gateway: Gateway, caller: Caller, name: str) -> bool:
    if caller.allowed_models is None:
        return True
    route = gateway.routes.resolve(name)
    return caller.may_use(route.model, route.network_arch, route.job_id)


def _model_document(name: str, gateway: Gateway) -> dict[str, Any]:
    route = gateway.routes.resolve(name)
    return {
        "object": "model",
        "type": "model",
        "display_name": route.model if route.job_id is None else f"{route.network_arch} on {route.platform}",
        "created": int(gateway.started_at),
        "created_at": gateway.started_at_text,
        **route.described,
        "id": name,
        "owned_by": "anthropic" if route.job_id is None else route.network_arch,
        "job_id": route.job_id,
        "network_arch": route.network_arch,
        "platform": route.platform,
    }


async def _usage(gateway: Gateway, request: Request) -> Answer:
    from inference_service.callers import own_usage

    caller = await _caller(gateway, request)
    try:
        document = await asyncio.to_thread(own_usage.document, gateway.database, caller)
    except ToolError as error:
        raise Refusal(503, "log_unavailable", error.message, retry_after=5) from None
    return Answer(200, orjson.dumps(document, default=str))


async def _metrics(gateway: Gateway, request: Request) -> Answer:
    from inference_service.gateway import metrics

    _require_admin(gateway, request)
    now = time()
    snapshot = gateway.metrics.snapshot(gateway.gauges(), now)
    others = gateway.snapshots.others if gateway.snapshots is not None else tuple

    def rendered() -> bytes:
        return metrics.rendered(snapshot, others(), now)

    return Answer(200, await asyncio.to_thread(rendered), metrics.CONTENT_TYPE)


async def _dashboard(gateway: Gateway, request: Request) -> Answer:
    from inference_service.gateway import dashboard

    return dashboard.page()


async def _dashboard_data(gateway: Gateway, request: Request) -> Answer:
    from inference_service.gateway import dashboard

    _require_admin(gateway, request)
    return await dashboard.respond(gateway.database, request, gateway.live_requests())


async def _openapi(gateway: Gateway, request: Request) -> Answer:
    return Answer(200, await asyncio.to_thread((paths.REFERENCES / "gateway.openapi.json").read_bytes))


async def _root(gateway: Gateway, request: Request) -> Answer:
    return Answer(302, b"", headers=[(b"location", b"/dashboard")])


async def _caller(gateway: Gateway, request: Request) -> Caller:
    # A list needs no body, and so no content type; that the host is this machine still counts without keys.
    headers = {**request.headers, b"content-type": b"application/json"}
    return gateway.known_caller(headers) or await gateway.unknown_caller(headers)


def _require_admin(gateway: Gateway, request: Request) -> None:
    key = key_of(request.headers)
    if key is not None:
        if matches(key, gateway.admin_digest):
            return
        caller = gateway.accounts.authenticate(key)
        if caller is not None and caller.admin:
            return
    raise Refusal(
        401,
        "unauthenticated",
        "this needs the admin key: what the gateway got as TAO_GATEWAY_ADMIN_KEY, or the key of a caller made with"
        " --admin",
    )


_ENDPOINTS: Mapping[str, Endpoint] = {
    "/": _root,
    "/api/v1/health/liveness": _liveness,
    "/api/v1/health/readiness": _readiness,
    "/v1/models": _models,
    "/v1/usage": _usage,
    "/metrics": _metrics,
    "/dashboard": _dashboard,
    "/dashboard/data": _dashboard_data,
    "/openapi.json": _openapi,
}

"""Keeps a running gateway up to date with what changes around it: the registry, prices, the vendor's models.

Upstreams outlive the tables that they are in: a reload drops no connection to a service that is still there.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from inference_service import http_session, paths, pricing, references
from inference_service.errors import ToolError
from inference_service.gateway.refusals import ANTHROPIC, OPENAI
from inference_service.gateway.routing import Route, RouteTable
from inference_service.gateway.upstream.guard import Guard
from inference_service.gateway.upstreams import Upstream
from inference_service.gateway.vendor import Vendor
from inference_service.registry import RUNNING, Registry
from inference_service.service_meter import ServiceMeter, service_meter
from inference_service.token_pricing import PriceTable

if TYPE_CHECKING:
    from inference_service.contracts import ServiceEntry
    from inference_service.gateway.facts import GatewayFacts
    from inference_service.gateway.gateway import Gateway

log = logging.getLogger("gateway")


class Reloading:
    """What a gateway's routes and prices are made of."""

    def __init__(self, gateway: Gateway, facts: GatewayFacts) -> None:
        self._gateway = gateway
        self._facts = facts
        self._registry = Registry()
        self._registry_file = paths.registry_file()
        self._seen: tuple[int, int, int] | None = None
        self._archs = references.load().archs
        self._services: dict[str, tuple[ServiceEntry, Route]] = {}
        self._complaint = ""
        settings = gateway.settings
        self.vendor: Vendor | None = None
        if settings.upstream_key:
            upstream = Upstream(
                facts.vendor_name,
                settings.upstream_url or facts.vendor_url,
                ANTHROPIC,
                self._guard(facts.vendor_name),
                credential=(b"x-api-key", settings.upstream_key.encode("ascii", "replace")),
                **facts.connections(),
            )
            self.vendor = Vendor(upstream, settings.model, self._renew_routes)
        gateway.prices = PriceTable.load()
        self._gpu_prices = pricing.gpu_prices()
        self.look()
        self._renew_routes()

    def look(self) -> None:
        """Take over what has changed on disk; cheap when nothing has."""
        if self._gateway.prices.refresh():
            self._change_gpu_prices()
        self._complain(self._gateway.prices.problem)
        seen = _stamp(self._registry_file)
        if seen == self._seen:
            return
        try:
            snapshot = self._registry.read()
        except ToolError as error:
            self._complain(error)
            return
        self._seen = seen
        entries = {job_id: entry for job_id, entry in snapshot.services.items() if entry.status == RUNNING}
        for job_id in [*self._services]:
            if job_id not in entries:
                _let_go(self._services.pop(job_id)[1])
        for job_id, entry in entries.items():
            known = self._services.get(job_id)
            if known is None or known[0] != entry:
                route = self._route(entry)
                if known is not None:
                    _let_go(self._services.pop(job_id)[1])
                if route is not None:
                    self._services[job_id] = entry, route
        self._renew_routes()

    def close(self) -> None:
        """Let go of the connections to all upstreams."""
        for _, route in self._services.values():
            _let_go(route)
        if self.vendor is not None:
            self.vendor.upstream.pool.close()

    def _renew_routes(self) -> None:
        vendor = self.vendor
        models = {model: self._vendor_route(vendor, model) for model in vendor.models} if vendor else {}
        self._gateway.routes = RouteTable(
            [route for _, route in self._services.values()],
            models,
            own_arch=self._facts.own_arch,
            own_model=self._gateway.settings.model,
            other_vendor_model=self._priced_vendor_model,
        )

    def _priced_vendor_model(self, model: str) -> Route | None:
        """A dated id or an alias, which stands in no list, is known by having a price."""
        if self.vendor is None or self._gateway.prices.for_model(model, time()) is None:
            return None
        return self._vendor_route(self.vendor, model)

    def _vendor_route(self, vendor: Vendor, model: str) -> Route:
        return Route(
            model=model,
            network_arch=self._facts.own_arch,
            platform=None,
            job_id=None,
            shape=ANTHROPIC,
            upstream=vendor.upstream,
            described=vendor.models.get(model, {}),
        )

    def _route(self, entry: ServiceEntry) -> Route | None:
        arch = self._archs.get(entry.network_arch)
        if entry.network_arch == self._facts.own_arch or not entry.host_url:
            # Another gateway, or this one: requests would go round in circles.
            return None
        try:
            token = http_session.token(entry)
            name = f"{entry.network_arch} {entry.job_id[:8]}"
            upstream = Upstream(
                name,
                entry.host_url,
                OPENAI,
                self._guard(name),
                credential=(b"authorization", b"Bearer " + token.encode("ascii")) if token else None,
                **self._facts.connections(),
            )
        except (ToolError, ValueError) as error:
            log.warning("%s is not routed to: %s", entry.job_id, error)
            return None
        return Route(
            model=entry.model_path or entry.network_arch,
            network_arch=entry.network_arch,
            platform=entry.platform,
            job_id=entry.job_id,
            shape=OPENAI,
            upstream=upstream,
            streaming=arch.request.streaming if arch else True,
            meter=self._meter(entry),
        )

    def _meter(self, entry: ServiceEntry) -> ServiceMeter | None:
        # Workers share a service, and so its GPU: what one of them alone would see is not who uses it.
        try:
            return service_meter(entry, self._gpu_prices, shared_in=self._gateway.settings.run_directory)
        except OSError as error:
            log.warning("requests to %s are not priced: its meter cannot be shared: %s", entry.job_id, error)
            return None

    def _change_gpu_prices(self) -> None:
        try:
            self._gpu_prices = pricing.gpu_prices()
        except ToolError as error:
            self._complain(error)
            return
        log.info("prices reloaded")
        for job_id, (entry, route) in [*self._services.items()]:
            if route.meter is None or not route.meter.change_prices(self._gpu_prices):
                self._services[job_id] = entry, replace(route, meter=self._meter(entry))
        self._renew_routes()

    def _guard(self, name: str) -> Guard:
        facts = self._facts
        return Guard(facts.max_concurrency, facts.queue_limit, facts.queue_seconds, name=name)

    def _complain(self, error: ToolError | None) -> None:
        complaint = "" if error is None else error.message
        if complaint and complaint != self._complaint:
            log.error("%s; what was loaded before stays in force", complaint)
        self._complaint = complaint


def _let_go(route: Route) -> None:
    """Close idle connections. What is under way goes on, and ends at its meter, which therefore stays open."""
    route.upstream.pool.close()


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

"""Which upstream a request's `model` means: a Claude model id, a job_id, or a network arch. Never a silent default.

The table is made from the registry, the vendor's list of models and the price table, and made again when one of them
changes; a request costs one look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inference_service.gateway.refusals import Refusal
from inference_service.gateway.tapping import Shape

if TYPE_CHECKING:
    from inference_service.gateway.upstreams import Upstream
    from inference_service.service_meter import ServiceMeter

_SHORTEST_PREFIX = 8
_MOST_CHOICES_SHOWN = 40


@dataclass(frozen=True)
class Route:
    """Where requests for one model go. `shape` is what the upstream speaks. `meter` prices a service whose GPU has a
    price; a vendor's model (`job_id` None) is priced by its tokens. `model` is what the log and the price table know it
    by; `described` is what the vendor says of the model in its list."""

    model: str
    network_arch: str
    platform: str | None
    job_id: str | None
    shape: Shape
    upstream: Upstream
    streaming: bool = True
    meter: ServiceMeter | None = None
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What metrics call it: few values, and none that a caller chose."""
        return self.job_id or self.model


class RouteTable:
    """The routes by every name that means one of them. Frozen once made: a reload makes another."""

    def __init__(
        self,
        services: Sequence[Route],
        vendor_models: Mapping[str, Route],
        *,
        own_arch: str,
        own_model: str = "",
        other_vendor_model: Callable[[str], Route | None] = lambda model: None,
    ) -> None:
        """`vendor_models` by id; `own_arch` is the network arch that such a gateway itself is, `own_model` the model it
        was started for, which that arch's name then means. `other_vendor_model` knows what stands in no list: dated
        ids and aliases."""
        self._vendor = dict(vendor_models)
        self._services = {route.job_id: route for route in services if route.job_id}
        self._by_arch: dict[str, list[Route]] = {}
        for route in services:
            self._by_arch.setdefault(route.network_arch, []).append(route)
        self._own_arch = own_arch
        self._other_vendor_model = other_vendor_model
        self._names: dict[str, Route] = {**self._services, **self._vendor}
        self._names.update((arch, found[0]) for arch, found in self._by_arch.items() if len(found) == 1)
        if own_model in self._vendor:
            self._names[own_arch] = self._vendor[own_model]

    def resolve(self, model: object) -> Route:
        """The route that this value of `model` means.

        Raises:
            Refusal: 400 for none, what is no string, or a name that several services share; 404 for one that nothing
                has. Both list the choices.
        """
        if isinstance(model, str):
            route = self._names.get(model)
            if route is not None:
                return route
        return self._refuse(model)

    def routes(self) -> list[Route]:
        """All routes, services first."""
        return [*self._services.values(), *self._vendor.values()]

    def choices(self) -> list[str]:
        """Every name that can be asked for, archs that are ambiguous left out."""
        return sorted(self._names)

    def _refuse(self, model: object) -> Route:
        if not isinstance(model, str) or not model:
            what = "model is missing" if model is None or model == "" else "model is not a string"
            raise Refusal(400, "invalid_request", f"{what}; {self._told()}", param="model")
        if len(model) >= _SHORTEST_PREFIX:
            matching = [route for job_id, route in self._services.items() if job_id.startswith(model)]
            if len(matching) == 1:
                return matching[0]
            if matching:
                raise self._ambiguous(model, [str(route.job_id) for route in matching])
        if model in self._by_arch:
            raise self._ambiguous(model, [str(route.job_id) for route in self._by_arch[model]])
        if model == self._own_arch and self._vendor:
            raise self._ambiguous(model, sorted(self._vendor))
        other = self._other_vendor_model(model)
        if other is not None:
            return other
        shown = model if len(model) <= 100 else model[:100] + "…"
        raise Refusal(404, "unknown_model", f"there is no model {shown!r}; {self._told()}", param="model")

    def _ambiguous(self, model: str, choices: Sequence[str]) -> Refusal:
        return Refusal(
            400,
            "ambiguous_model",
            f"{model!r} could mean {len(choices)} services; name one of: {_listed(choices)}",
            param="model",
        )

    def _told(self) -> str:
        choices = self.choices()
        return f"choose one of: {_listed(choices)}" if choices else "nothing runs: start a service, or set a Claude key"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_CHOICES_SHOWN])
    rest = len(names) - _MOST_CHOICES_SHOWN
    return f"{shown} and {rest} more (GET /v1/models)" if rest > 0 else shown

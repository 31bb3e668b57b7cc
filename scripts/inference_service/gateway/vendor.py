"""The vendor behind the `claude` routes: which models it has, and whether our key is good for them.

Asked without spending tokens: the list of models is free. Asked again every few minutes, and sooner while it fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from inference_service.gateway.upstream.errors import UpstreamError

if TYPE_CHECKING:
    from inference_service.gateway.upstreams import Upstream

log = logging.getLogger("gateway")

_EVERY_SECONDS = 300.0
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 30.0
_TIMEOUT_SECONDS = 20.0
_LONGEST_LIST = 4 << 20
_VERSION = {b"anthropic-version": b"2023-06-01"}

# What readiness says, in the words that the services' readiness has (references/request.yaml): wait, or never.
INITIALIZING = "server_initializing"
KEY_REFUSED = "initialization_failed"
NO_SUCH_MODEL = "model_load_failed"


class Vendor:
    """`problem` is None once the key was found good and, where one was named, the model to exist."""

    def __init__(self, upstream: Upstream, model: str, changed: Callable[[], None]) -> None:
        """`model` is the one that must exist, empty for any. `changed` is called when the list of models differs."""
        self.upstream = upstream
        # What the vendor says of each model, by its id.
        self.models: Mapping[str, Mapping[str, Any]] = {}
        self.problem: tuple[str, str] | None = (INITIALIZING, f"{upstream.name} has not been asked yet")
        self.asked = False
        self._model = model
        self._changed = changed

    async def keep_up_to_date(self) -> None:
        """Ask now and again, for as long as the gateway runs."""
        retry = _FIRST_RETRY_SECONDS
        while True:
            answered = await self._ask()
            self.asked = True
            await asyncio.sleep(_EVERY_SECONDS if answered else retry)
            retry = _FIRST_RETRY_SECONDS if answered else min(2 * retry, _LONGEST_RETRY_SECONDS)

    async def _ask(self) -> bool:
        upstream = self.upstream
        try:
            models: dict[str, Mapping[str, Any]] = {}
            after = b""
            while True:
                status, body = await self._get(upstream.target_for(b"/v1/models?limit=1000" + after))
                if status != 200:
                    break
                page = orjson.loads(body)
                models.update((str(model["id"]), model) for model in page["data"])
                if not page.get("has_more"):
                    break
                after = b"&after_id=" + str(page["data"][-1]["id"]).encode("ascii")
        except (UpstreamError, ValueError, LookupError, TypeError) as error:
            self._not_answered(f"{upstream.name} cannot be asked for its models: {error}")
            return False
        if status in (401, 403):
            self._set((KEY_REFUSED, f"{upstream.name} does not accept the key (HTTP {status})"))
            return False
        if status != 200:
            self._not_answered(f"{upstream.name} answers HTTP {status} when it is asked for its models")
            return False
        if self._model and self._model not in models:
            self._set((NO_SUCH_MODEL, f"{upstream.name} has no model {self._model}"))
        else:
            self._set(None)
        if models != self.models:
            self.models = models
            self._changed()
        return True

    async def _get(self, target: bytes) -> tuple[int, bytes]:
        response = await self.upstream.pool.send(
            b"GET", target, self.upstream.headers_with(_VERSION), b"", timeout=_TIMEOUT_SECONDS
        )
        try:
            body = await response.read(_LONGEST_LIST)
        finally:
            response.close()
        if response.status != 200:
            # Whoever answered may be the wrong one behind a name that leads elsewhere by now: look it up again.
            self.upstream.pool.drop_idle()
        return response.status, body

    def keeps_waiting(self) -> bool:
        """Whether it was asked in vain, and no model of it must exist: what else there is can be served meanwhile."""
        return self.asked and not self._model and self.problem is not None and self.problem[0] == INITIALIZING

    def _not_answered(self, why: str) -> None:
        # Once it has answered, a short outage of the list says nothing about the models themselves.
        if self.models:
            log.warning("%s", why)
        else:
            self._set((INITIALIZING, why))

    def _set(self, problem: tuple[str, str] | None) -> None:
        if problem != self.problem and problem is not None:
            log.warning("%s", problem[1])
        self.problem = problem

"""references/gateway.yaml's facts about the server: its upstreams, and what it is itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service import paths, reference_validation


@dataclass(frozen=True)
class GatewayFacts:
    """`own_arch` is the network arch that a gateway is when it is started as a service; seconds and counts are those of
    each upstream, per process."""

    own_arch: str
    vendor_name: str
    vendor_url: str
    silence_seconds: float
    connect_seconds: float
    idle_connection_seconds: float
    max_concurrency: int
    queue_limit: int
    queue_seconds: float

    def connections(self) -> dict[str, Any]:
        """How connections to an upstream are made and kept."""
        return {
            "connect_seconds": self.connect_seconds,
            "idle_seconds": self.idle_connection_seconds,
            # A place at the upstream is what is rationed; a connection is there for every place.
            "max_connections": self.max_concurrency + 16,
        }


@functools.cache
def document() -> Mapping[str, Any]:
    """references/gateway.yaml, read and held against its schema once per process.

    Raises:
        ToolError: it is missing, does not parse or breaks its schema.
    """
    file = paths.REFERENCES / "gateway.yaml"
    found: Mapping[str, Any] = reference_validation.validated(
        file, reference_validation.read_yaml(file), schema="gateway"
    )
    return found


def load() -> GatewayFacts:
    """The facts of references/gateway.yaml; raises as `document`."""
    found = document()
    upstreams = found["upstreams"]
    return GatewayFacts(
        own_arch=found["network_arch"],
        vendor_name=found["vendor"]["name"],
        vendor_url=found["vendor"]["url"],
        **upstreams,
    )

"""The service in a container that was found on a Docker daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import local_docker_daemon as daemon

from inference_service import docker_inspection
from inference_service.contracts import (
    StartedService,
)

PLATFORM = "local-docker"
DAEMON_FIELD = "docker_host"
"""The registry's extra field that says which daemon has the service."""


def discovered(attributes: Mapping[str, Any], address: str) -> StartedService:
    """The service in an inspected container that carries our labels."""
    port, bind_address, _ = docker_inspection.published(attributes)
    host_url = f"http://{daemon.service_host(address, bind_address)}:{port}" if port else ""
    return docker_inspection.discovered(attributes, PLATFORM, host_url, {DAEMON_FIELD: address})

"""The service in a container that was found on a Docker daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import local_docker_daemon as daemon

from inference_service.contracts import (
    JOB_ID_LABEL,
    MODEL_PATH_LABEL,
    NETWORK_ARCH_LABEL,
    STOP_AFTER_LABEL,
    StartedService,
)
from inference_service.docker_inspection import num_gpus, published, utc_seconds

PLATFORM = "local-docker"
DAEMON_FIELD = "docker_host"
"""The registry's extra field that says which daemon has the service."""


def discovered(attributes: Mapping[str, Any], address: str) -> StartedService:
    """The service in an inspected container that carries our labels."""
    labels = attributes["Config"]["Labels"]
    job_id = labels[JOB_ID_LABEL]
    port, bind_address, container_port = published(attributes)
    host_url = f"http://{daemon.service_host(address, bind_address)}:{port}" if port else ""
    return StartedService(
        job_id=job_id,
        network_arch=labels.get(NETWORK_ARCH_LABEL, ""),
        platform=PLATFORM,
        host_url=host_url,
        image=attributes["Config"]["Image"],
        model_path=labels.get(MODEL_PATH_LABEL, ""),
        num_gpus=num_gpus(attributes),
        host_port=port,
        docker_url=f"http://{job_id}:{container_port}" if container_port else None,
        started_at=utc_seconds(attributes["State"]["StartedAt"]),
        stop_after=labels.get(STOP_AFTER_LABEL),
        extras={
            DAEMON_FIELD: address,
            "container_id": attributes["Id"],
            "docker_network": attributes["HostConfig"]["NetworkMode"],
        },
    )

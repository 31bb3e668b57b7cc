"""What Docker says of a container, read as the service that runs in it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from inference_service.contracts import (
    JOB_ID_LABEL,
    MODEL_PATH_LABEL,
    NETWORK_ARCH_LABEL,
    STOP_AFTER_LABEL,
    PlatformStatus,
    StartedService,
    State,
)

RUNNING_STATES = ("running", "restarting", "paused")


def status_of(state: Mapping[str, Any]) -> PlatformStatus:
    """What an inspected container's `State` means for the service in it."""
    word = state["Status"]
    if word in RUNNING_STATES:
        return PlatformStatus(State.RUNNING, "" if word == "running" else word)
    if word == "created":
        return PlatformStatus(State.PENDING, "the container was created and not started")
    if word == "removing":
        return PlatformStatus(State.EXITED, "the container is being removed")
    said = f": {state['Error']}" if state.get("Error") else ""
    if state.get("OOMKilled"):
        return PlatformStatus(State.FAILED, f"the container ran out of memory and was killed{said}")
    if word == "dead":
        return PlatformStatus(State.FAILED, f"Docker could not remove the container{said}")
    return PlatformStatus(State.EXITED, f"the container ended with exit code {state.get('ExitCode')}{said}")


def is_ours(attributes: Mapping[str, Any], job_id: str) -> bool:
    """Whether an inspected container is the one of this job_id and not a stranger's.

    Its label decides. Without one its name must be the job_id and that a UUID, which nobody else gives a container: so
    were those started that the seed's own way (`docker run --name <job_id>`) registers.
    """
    if attributes["Name"].lstrip("/") != job_id:
        return False
    label = (attributes["Config"].get("Labels") or {}).get(JOB_ID_LABEL)
    return label == job_id if label is not None else _is_uuid(job_id)


def discovered(
    attributes: Mapping[str, Any], platform: str, host_url: str, extras: Mapping[str, Any]
) -> StartedService:
    """The service in an inspected container that carries our labels; where it answers, and further fields, are said."""
    labels = attributes["Config"]["Labels"]
    job_id = labels[JOB_ID_LABEL]
    port, _, container_port = published(attributes)
    return StartedService(
        job_id=job_id,
        network_arch=labels.get(NETWORK_ARCH_LABEL, ""),
        platform=platform,
        host_url=host_url,
        image=attributes["Config"]["Image"],
        model_path=labels.get(MODEL_PATH_LABEL, ""),
        num_gpus=num_gpus(attributes),
        host_port=port,
        docker_url=f"http://{job_id}:{container_port}" if container_port else None,
        started_at=utc_seconds(attributes["State"]["StartedAt"]),
        stop_after=labels.get(STOP_AFTER_LABEL),
        extras={
            "container_id": attributes["Id"],
            "docker_network": attributes["HostConfig"]["NetworkMode"],
            **extras,
        },
    )


def num_gpus(attributes: Mapping[str, Any]) -> int:
    """How many GPUs an inspected container was given."""
    requests = attributes["HostConfig"].get("DeviceRequests") or []
    return sum(len(request.get("DeviceIDs") or ()) or request["Count"] for request in requests)


def published(attributes: Mapping[str, Any]) -> tuple[int | None, str, int | None]:
    """The host port, the address it is published on and the container's port; None where nothing is published."""
    for exposed, bindings in (attributes["HostConfig"].get("PortBindings") or {}).items():
        for binding in bindings or ():
            if binding.get("HostPort"):
                container_port = int(exposed.partition("/")[0])
                return int(binding["HostPort"]), binding.get("HostIp") or "0.0.0.0", container_port  # noqa: S104
    return None, "127.0.0.1", None


def utc_seconds(docker_time: str) -> str:
    """A moment of Docker's, to the second and with an offset."""
    # Docker writes nanoseconds, which datetime does not read.
    return f"{docker_time[:19]}+00:00"


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False

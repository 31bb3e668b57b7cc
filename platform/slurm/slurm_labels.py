"""A job's labels. Slurm has none, so they stand in its comment, percent-encoded: one word without squeue's separator.

The job's name carries the job_id as well: a name can be looked for where an answer was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

from inference_service import paths
from inference_service.contracts import (
    JOB_ID_LABEL,
    MODEL_PATH_LABEL,
    NETWORK_ARCH_LABEL,
    REGISTRY_LABEL,
    STOP_AFTER_LABEL,
    LaunchSpec,
)

HOST_PORT_LABEL = "tao-host-port"
CONTAINER_PORT_LABEL = "tao-container-port"
NUM_GPUS_LABEL = "tao-num-gpus"
IMAGE_LABEL = "tao-image"
STARTED_LABEL = "tao-started-at"

_PREFIX = "tao-"


def job_name(job_id: str) -> str:
    """The name of the job that runs this service."""
    return f"{_PREFIX}{job_id}"


def labels_of(spec: LaunchSpec, started_at: str, stop_after: str | None) -> dict[str, str]:
    """The labels of a service's job; both moments are ISO 8601 in UTC, the cluster's own clock has no time zone."""
    deadline = {STOP_AFTER_LABEL: stop_after} if stop_after is not None else {}
    return deadline | {
        JOB_ID_LABEL: spec.job_id,
        NETWORK_ARCH_LABEL: spec.network_arch,
        REGISTRY_LABEL: paths.shared_registry_owner(),
        MODEL_PATH_LABEL: spec.model_path,
        IMAGE_LABEL: spec.image,
        NUM_GPUS_LABEL: str(spec.num_gpus),
        HOST_PORT_LABEL: str(spec.host_port or ""),
        CONTAINER_PORT_LABEL: str(spec.container_port),
        STARTED_LABEL: started_at,
    }


def comment(labels: Mapping[str, str]) -> str:
    """The labels as a job's comment."""
    return ",".join(f"{name}={quote(value, safe='/:._-')}" for name, value in labels.items())


def parse(text: str) -> dict[str, str]:
    """The labels of a job's comment; those of somebody else's comment have other names, or there are none."""
    pairs = (item.partition("=") for item in text.strip().split(","))
    return {name: unquote(value) for name, equals, value in pairs if equals and name.startswith(_PREFIX)}

"""What one endpoint is to be like, as plain values, and what an endpoint of ours says of itself.

It is made from a launch spec, shown by --dry-run and given to Lepton by `start`, in the shape in which the client takes
it for both generations of the API. Secrets are names here: the endpoint refers to Lepton secrets that hold the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import lepton_names as names
from lepton_options import Settings

from inference_service import paths
from inference_service.contracts import LaunchSpec, StartedService

PLATFORM = "lepton"
WORKSPACE_FIELD, WORKSPACE_URL_FIELD = "lepton_workspace", "lepton_workspace_url"
"""The registry's extra fields that say in which workspace the service is, and where that is asked."""
"""The registry's extra field of when a service is not wanted any more: ISO 8601, UTC."""


def document(
    spec: LaunchSpec, settings: Settings, resource_shape: str | None, node_group_id: str | None = None
) -> dict[str, Any]:
    """The endpoint as Lepton's API has it. `resource_shape` is None, and left out, where it is not known yet."""
    name = names.endpoint_name(spec.job_id)
    requirement: dict[str, Any] = {"min_replicas": 1, "max_replicas": 1}
    if resource_shape:
        requirement["resource_shape"] = resource_shape
    if settings.shm_mib:
        requirement["shared_memory_size"] = settings.shm_mib
    if node_group_id:
        requirement["affinity"] = {"allowed_dedicated_node_groups": [node_group_id]}
    user_spec: dict[str, Any] = {
        "container": {
            "image": spec.image,
            "command": ["bash", "-c", spec.command],
            "ports": [{"container_port": spec.container_port}],
        },
        "resource_requirement": requirement,
        "envs": _envs(spec),
    }
    if spec.mounts:
        user_spec["mounts"] = [
            {
                "path": mount.source,
                "from": settings.volume,
                "mount_path": mount.target,
                "mount_options": {"read_only": mount.read_only},
            }
            for mount in spec.mounts
        ]
    if settings.image_pull_secret:
        user_spec["image_pull_secrets"] = [settings.image_pull_secret]
    return {"metadata": {"id": name, "name": name}, "spec": user_spec}


def secret_names(spec: LaunchSpec) -> dict[str, str]:
    """The Lepton secrets of this service: the environment variable's name, and the secret's."""
    return {name: names.secret_name(spec.job_id, name) for name in spec.secret_env}


def marks(deployment: Any) -> dict[str, str]:
    """The plain environment of an endpoint, among it what we have written into it to find it again."""
    envs = (deployment.spec.envs if deployment.spec else None) or ()
    return {env.name: env.value for env in envs if env.value is not None}


def url_of(deployment: Any) -> str:
    """Where the endpoint answers; empty as long as Lepton has given it no address."""
    endpoint = deployment.status.endpoint if deployment.status else None
    return (endpoint.external_endpoint or "").rstrip("/") if endpoint else ""


def name_of(deployment: Any) -> str:
    """The endpoint's name."""
    return str(deployment.metadata.name or deployment.metadata.id_) if deployment.metadata else ""


def started(deployment: Any, workspace_extras: Mapping[str, str], auth: Mapping[str, str]) -> StartedService:
    """The service in an endpoint that carries our marks."""
    found, container = marks(deployment), deployment.spec.container
    created_at = deployment.metadata.created_at
    num_gpus = found.get(names.NUM_GPUS_ENV, "")
    return StartedService(
        job_id=found[names.JOB_ID_ENV],
        network_arch=found.get(names.NETWORK_ARCH_ENV, ""),
        platform=PLATFORM,
        host_url=url_of(deployment),
        image=(container.image if container else None) or "",
        model_path=found.get(names.MODEL_PATH_ENV, ""),
        num_gpus=int(num_gpus) if num_gpus.isdecimal() else 0,
        platform_job_id=name_of(deployment),
        started_at=_moment(created_at),
        stop_after=found.get(names.STOP_AFTER_ENV),
        extras={
            **workspace_extras,
            **auth,
            "resource_shape": deployment.spec.resource_requirement.resource_shape
            if deployment.spec.resource_requirement
            else None,
        },
    )


def _envs(spec: LaunchSpec) -> list[dict[str, Any]]:
    plain = {
        **spec.env,
        names.JOB_ID_ENV: spec.job_id,
        names.NETWORK_ARCH_ENV: spec.network_arch,
        names.MODEL_PATH_ENV: spec.model_path,
        names.REGISTRY_ENV: paths.shared_registry_owner(),
        names.NUM_GPUS_ENV: str(spec.num_gpus),
    }
    stop_after = spec.stop_after()
    if stop_after is not None:
        plain[names.STOP_AFTER_ENV] = stop_after
    secret = [
        {"name": name, "value_from": {"secret_name_ref": secret_name}}
        for name, secret_name in secret_names(spec).items()
    ]
    return [{"name": name, "value": value} for name, value in plain.items()] + secret


def _moment(created_at: int | None) -> str | None:
    if not created_at:
        return None
    # Lepton counts in milliseconds; seconds are taken, too.
    seconds = created_at / 1000 if created_at > 10**11 else created_at
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")

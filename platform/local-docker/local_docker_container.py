"""A container as the Engine API takes it, and as --dry-run shows it (see `docker_container`)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from inference_service.docker_container import LOG_MAX_FILES, LOG_MAX_SIZE, Gpus, Plan, docker_run


def create_arguments(plan: Plan, secret_values: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of APIClient.create_container, but for its `host_config` (`host_config_arguments`)."""
    return {
        "image": plan.image,
        # The image's own entry point may be anything; the inner command is written for bash.
        "entrypoint": ["bash"],
        "command": ["-c", plan.command],
        "name": plan.name,
        "environment": {**plan.env, **secret_values},
        "labels": dict(plan.labels),
        "ports": [plan.container_port],
        "networking_config": {"EndpointsConfig": {plan.network: {}}},
    }


def host_config_arguments(plan: Plan) -> dict[str, Any]:
    """The arguments of APIClient.create_host_config."""
    from docker.types import LogConfig
    from docker.types import Mount as DockerMount

    return {
        # Reaps what the server leaves, and passes docker stop's TERM on: bash as process 1 would ignore it.
        "init": True,
        "port_bindings": {plan.container_port: (plan.bind_address, plan.host_port)},
        "network_mode": plan.network,
        "shm_size": plan.shm_bytes,
        "mounts": [
            DockerMount(mount.target, mount.source, type="bind", read_only=mount.read_only) for mount in plan.mounts
        ],
        # A crashed container's log is needed: it is neither removed nor started again by itself.
        "restart_policy": {"Name": "no"},
        "log_config": LogConfig(
            type=LogConfig.types.JSON, config={"max-size": LOG_MAX_SIZE, "max-file": LOG_MAX_FILES}
        ),
        "runtime": plan.gpus.runtime,
        "device_requests": device_requests(plan.gpus),
    }


def device_requests(gpus: Gpus) -> list[dict[str, Any]]:
    """Docker's DeviceRequests, in the API's own spelling; none for no GPUs, or where the runtime is asked instead."""
    if not gpus.count or gpus.runtime:
        return []
    return [
        {
            "Driver": "",
            "Count": 0 if gpus.ids else gpus.count,
            "DeviceIDs": list(gpus.ids),
            "Capabilities": [["gpu"]],
            "Options": {},
        }
    ]


def document(plan: Plan) -> dict[str, Any]:
    """The container as JSON for --dry-run; secrets are names."""
    return {
        "name": plan.name,
        "image": plan.image,
        "entrypoint": ["bash"],
        "command": ["-c", plan.command],
        "env": dict(plan.env),
        "secret_env": list(plan.secret_env),
        "labels": dict(plan.labels),
        "ports": {f"{plan.container_port}/tcp": {"bind_address": plan.bind_address, "host_port": plan.host_port}},
        "network": plan.network,
        "shm_bytes": plan.shm_bytes,
        "mounts": [
            {"source": mount.source, "target": mount.target, "read_only": mount.read_only} for mount in plan.mounts
        ],
        "device_requests": device_requests(plan.gpus),
        "runtime": plan.gpus.runtime,
        "docker_run": shlex.join(docker_run(plan)),
    }

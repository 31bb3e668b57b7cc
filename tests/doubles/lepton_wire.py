"""What goes over the wire of DGX Cloud Lepton's API, in both generations: what it refuses, how it shows an endpoint.

Follows the official client, `leptonai` 0.47.1: api/v2/types (the fields), api/v2/translation.py (the newer generation's
shape, that it has no labels, its states' spelling), api/v2/job_validation.py and spec_utils.py (names that it refuses),
api/v2/tests/test_secure_endpoint_auth_contract.py (tokens in answers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAME = re.compile(r"[a-z]([a-z0-9-]{0,34}[a-z0-9])?")
ENV_NAME = re.compile(r"[A-Za-z._-][A-Za-z0-9._-]*")
RESERVED_ENV = ("LEPTON_WORKSPACE_ID", "LEPTON_DEPLOYMENT_NAME", "LEPTON_JOB_NAME", "LEPTON_WORKSPACE_ORIGIN_URL")
RESERVED_MOUNTS = ("/", "/bin", "/dev", "/etc", "/lib", "/opt", "/proc", "/run", "/sys", "/usr", "/var")
# Fields of each level that the API knows; what it does not know it would lose without a word.
_LEGACY = {
    "metadata": {"id", "name", "labels", "visibility"},
    "spec": {
        *("container", "resource_requirement", "api_tokens", "envs", "mounts", "image_pull_secrets", "health", "log"),
        *("auto_scaler", "allow_unauthenticated_access", "auth_config"),
    },
    "resource_requirement": {"resource_shape", "min_replicas", "max_replicas", "shared_memory_size", "affinity"},
}
_NEW = {
    "metadata": {"name", "lepton_metadata"},
    "spec": {
        "components",
        "api_tokens",
        "allow_unauthenticated_access",
        "image_pull_secrets",
        "log",
        "ingress_enabled",
    },
    "component": {
        *("name", "image", "command", "ports", "envs", "mounts", "resource_shape", "min_replicas", "max_replicas"),
        *("shared_memory_size", "affinity", "health", "autoscaling"),
    },
}


class Refused(Exception):
    """What the API answers to a request that it does not carry out."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Wanted:
    """An endpoint as its creator asked for it, whatever the generation of the API."""

    name: str
    image: str
    command: list[str]
    port: int
    shape: str
    envs: list[dict[str, Any]]
    mounts: list[dict[str, Any]] = field(default_factory=list)
    pull_secrets: list[str] = field(default_factory=list)
    tokens: list[str] | None = None
    node_groups: list[str] = field(default_factory=list)
    open_to_all: bool = False


def read_legacy(body: Mapping[str, Any]) -> Wanted:
    """The endpoint of POST /deployments."""
    metadata, spec = _object(body, "metadata"), _object(body, "spec")
    requirement = _object(spec, "resource_requirement")
    for level, found in (("metadata", metadata), ("spec", spec), ("resource_requirement", requirement)):
        _known(level, found, _LEGACY[level])
    container = _object(spec, "container")
    return _wanted(metadata.get("name") or metadata.get("id"), spec, {**spec, **container, **requirement})


def read_new(body: Mapping[str, Any]) -> Wanted:
    """The endpoint of POST /endpoints."""
    metadata, spec = _object(body, "metadata"), _object(body, "spec")
    _known("metadata", metadata, _NEW["metadata"])
    _known("spec", spec, _NEW["spec"])
    components = spec.get("components")
    if not isinstance(components, list) or len(components) != 1:
        raise Refused(400, "spec.components must have one component")
    _known("component", components[0], _NEW["component"])
    return _wanted(metadata.get("name"), spec, components[0])


def _wanted(name: Any, spec: Mapping[str, Any], component: Mapping[str, Any]) -> Wanted:
    if not isinstance(name, str) or not NAME.fullmatch(name) or name.endswith("by-lepton"):
        raise Refused(400, f"invalid name {name!r}: at most 36 lower case letters, digits and '-', a letter first")
    if not component.get("image"):
        raise Refused(400, "an image is required")
    ports = component.get("ports") or [{"container_port": 40000}]
    for env in component.get("envs") or ():
        if not ENV_NAME.fullmatch(env["name"]) or env["name"] in RESERVED_ENV:
            raise Refused(400, f"invalid environment variable name {env['name']!r}")
        if ("value" in env) == ("value_from" in env):
            raise Refused(400, f"the environment variable {env['name']} needs a value or a value_from")
    for mount in component.get("mounts") or ():
        if mount["mount_path"].rstrip("/") in RESERVED_MOUNTS or not mount.get("from"):
            raise Refused(400, f"cannot mount at {mount['mount_path']}")
    tokens = spec.get("api_tokens")
    affinity = component.get("affinity") or {}
    return Wanted(
        name=name,
        image=component["image"],
        command=component.get("command") or [],
        port=ports[0]["container_port"],
        shape=component.get("resource_shape") or "",
        envs=list(component.get("envs") or ()),
        mounts=list(component.get("mounts") or ()),
        pull_secrets=list(spec.get("image_pull_secrets") or ()),
        tokens=None if tokens is None else [each["value"] for each in tokens],
        node_groups=list(affinity.get("allowed_dedicated_node_groups") or ()),
        open_to_all=bool(spec.get("allow_unauthenticated_access")),
    )


def show_legacy(body: Mapping[str, Any], wanted: Wanted, state: str, url: str, tokens: list[str]) -> dict[str, Any]:
    """The endpoint as GET /deployments/<name> shows it; a stopped one says so in `phase` alone."""
    spec = {**body["spec"], "api_tokens": [{"value": token} for token in tokens]}
    return {
        "metadata": {"id": wanted.name, "name": wanted.name, "created_at": 1_795_000_000_000, "version": 1},
        "spec": spec,
        "status": {
            "state": "Not Ready" if state in ("Stopping", "Stopped") else state,
            "phase": state,
            "endpoint": {"internal_endpoint": "", "external_endpoint": url},
        },
    }


def show_new(body: Mapping[str, Any], wanted: Wanted, state: str, url: str, tokens: list[str]) -> dict[str, Any]:
    """The endpoint as GET /endpoints/<name> shows it; one that is being deleted says so by `deleted_at`."""
    deleted = {"deleted_at": 1_795_000_100_000} if state == "Deleting" else {}
    status = {"state": state.replace(" ", ""), **({"external_url": url} if url else {})}
    return {
        "metadata": {"name": wanted.name, "created_at": 1_795_000_000_000, "lepton_metadata": {}, **deleted},
        "spec": {**body["spec"], "api_tokens": [{"value": token} for token in tokens]},
        "status": {**status, **({"ready_replicas": 1} if state == "Ready" else {})},
    }


def workspace_info(
    name: str, new_routes: bool, secure_defaults: bool | None, quota: tuple[float, float], pull_secrets: int
) -> dict[str, Any]:
    """GET /workspace. `secure_defaults` None: a workspace of before there were features."""
    info: dict[str, Any] = {
        "build_time": "2026-11-01",
        "git_commit": "1.2.3",
        "workspace_name": name,
        "workspace_tier": "enterprise",
        "workspace_state": "normal",
        "supported_shapes": {},
        "workspace_disk_usage_bytes": 0,
        "workloads": {
            **dict.fromkeys(("num_deployments", "num_jobs", "num_pods", "num_secrets"), 0),
            "num_image_pull_secrets": pull_secrets,
        },
        "resource_quota": {
            "limit": {"cpu": 0.0, "memory": 0, "accelerator_num": quota[1]},
            "used": {"cpu": 0.0, "memory": 0, "accelerator_num": quota[0]},
        },
    }
    if new_routes or secure_defaults is not None:
        info["features"] = {"enable_new_deployment_api": new_routes, "enable_secure_endpoint_defaults": secure_defaults}
    return info


def shape(id: str, gpus: float = 0, gpu_type: str = "", memory_mib: int = 16384) -> dict[str, Any]:
    """One of GET /shapes."""
    accelerator = {"accelerator_type": gpu_type, "accelerator_num": gpus} if gpus else {}
    return {
        "metadata": {"id": id, "name": id},
        "spec": {"name": id, "cpu": 4.0, "memory_in_mb": memory_mib, **accelerator},
    }


def _object(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = body.get(key)
    if not isinstance(found, dict):
        raise Refused(400, f"{key} is required")
    return found


def _known(level: str, found: Mapping[str, Any], known: set[str]) -> None:
    unknown = set(found) - known
    if unknown:
        raise Refused(400, f"{level}: unknown fields {sorted(unknown)}")

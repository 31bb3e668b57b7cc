"""The objects of one service, made from its launch spec alone: the Job, the Service, and the Secrets if any.

They are JSON as the API takes it. Secrets are `${NAME}` here, for a dry run to show; their values join only in what
`start` sends. All of them are owned by the Job, so that one delete takes all.
"""

from __future__ import annotations

import base64
import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes_options import Settings, registry_of

from inference_service import paths, references
from inference_service.contracts import (
    JOB_ID_LABEL,
    MODEL_PATH_LABEL,
    NETWORK_ARCH_LABEL,
    REGISTRY_LABEL,
    STOP_AFTER_LABEL,
    LaunchSpec,
)

GPU = "nvidia.com/gpu"
SECRETS_ANNOTATION = "tao-secrets"
"""The names of the Secrets that were made for a Job, comma-separated: what is to be removed with it."""
START_ANNOTATION = "tao-start"
"""Which start made an object: a start whose answers were lost knows its own work by it."""
NGC_KEY = "NGC_KEY"
# NGC's registry takes this word as the user of every key.
_NGC_USER = "$oauthtoken"


@dataclass(frozen=True)
class Objects:
    """The objects of one service by kind. `secret` and `image_pull_secret` are None where none is needed."""

    job: Mapping[str, Any]
    service: Mapping[str, Any]
    secret: Mapping[str, Any] | None
    image_pull_secret: Mapping[str, Any] | None

    @property
    def secrets(self) -> list[Mapping[str, Any]]:
        """The Secrets that there are."""
        return [secret for secret in (self.secret, self.image_pull_secret) if secret is not None]

    def all(self) -> list[Mapping[str, Any]]:
        """Every object, in the order in which they are made."""
        return [self.job, *self.secrets, self.service]


def name_of(job_id: str) -> str:
    """The name of a service's Job, Service and Secret: a Service's has to begin with a letter, a UUID may not."""
    return f"tao-{job_id}"


def pull_secret_name_of(job_id: str) -> str:
    """The name of the image pull secret that is made for one service."""
    return f"{name_of(job_id)}-pull"


def build(
    spec: LaunchSpec, settings: Settings, namespace: str, secret_values: Mapping[str, str] | None = None
) -> Objects:
    """The objects of this launch.

    Without `secret_values` they are for show: the Secrets hold `${NAME}` in each value's place.
    """
    templates = _templates()
    metadata = functools.partial(_metadata, spec, settings, namespace)
    values = {name: f"${{{name}}}" for name in (*spec.secret_env, NGC_KEY)} if secret_values is None else secret_values
    secret = pull_secret = None
    if spec.secret_env:
        secret = {
            **templates["secret"],
            "metadata": metadata(name_of(spec.job_id)),
            "stringData": {name: values[name] for name in spec.secret_env},
        }
    if settings.create_image_pull_secret:
        pull_secret = {
            **templates["image_pull_secret"],
            "metadata": metadata(pull_secret_name_of(spec.job_id)),
            "stringData": {".dockerconfigjson": _docker_config(registry_of(spec.image), values[NGC_KEY])},
        }
    service = copy.deepcopy(templates["service"])
    service["metadata"] = metadata(name_of(spec.job_id))
    service["spec"] |= {
        "type": settings.service_type,
        "selector": {JOB_ID_LABEL: spec.job_id},
        "ports": [{"name": "http", "port": spec.container_port, "targetPort": spec.container_port, "protocol": "TCP"}],
    }
    made = [item["metadata"]["name"] for item in (secret, pull_secret) if item is not None]
    return Objects(_job(spec, settings, namespace, made), service, secret, pull_secret)


def owned_by(item: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """`item` with the existing Job as its owner: the cluster removes it when the Job is gone."""
    reference = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
        "controller": False,
    }
    return {**item, "metadata": {**item["metadata"], "ownerReferences": [reference]}}


def is_ours(item: Mapping[str, Any]) -> bool:
    """Whether an object carries this registry's mark."""
    return bool((item["metadata"].get("annotations") or {}).get(REGISTRY_LABEL) == paths.shared_registry_owner())


def _job(spec: LaunchSpec, settings: Settings, namespace: str, secrets_made: list[str]) -> dict[str, Any]:
    templates = _templates()
    job: dict[str, Any] = copy.deepcopy(templates["job"])
    job["metadata"] = _metadata(spec, settings, namespace, name_of(spec.job_id))
    if secrets_made:
        job["metadata"]["annotations"][SECRETS_ANNOTATION] = ",".join(secrets_made)
    if settings.deadline_seconds is not None:
        job["spec"]["activeDeadlineSeconds"] = settings.deadline_seconds
        job["metadata"]["annotations"][STOP_AFTER_LABEL] = spec.stop_after()
    template = job["spec"]["template"]
    template["metadata"] = {key: job["metadata"][key] for key in ("labels", "annotations")}
    pod = template["spec"]
    if settings.image_pull_secret or settings.create_image_pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.image_pull_secret or pull_secret_name_of(spec.job_id)}]
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    tolerations = tolerations_of(spec, settings)
    if tolerations:
        pod["tolerations"] = tolerations
    pod["volumes"][0]["emptyDir"]["sizeLimit"] = settings.shm_size
    container = pod["containers"][0]
    if _is_built_here(spec.image):
        # Nobody's registry serves it: on a public one the name could be anybody's.
        container["imagePullPolicy"] = "Never"
    container |= {
        "image": spec.image,
        "command": ["bash", "-c", _literal(spec.command)],
        "env": _env(spec),
        "ports": [{"name": "http", "containerPort": spec.container_port, "protocol": "TCP"}],
        "resources": _resources(spec, settings),
    }
    _mount(pod, container, spec, settings)
    return job


def tolerations_of(spec: LaunchSpec, settings: Settings) -> list[dict[str, str]]:
    """The taints that the pod tolerates: the user's, and that of GPU nodes where it asks for GPUs."""
    return [*([gpu_toleration()] if spec.num_gpus else []), *map(dict, settings.tolerations)]


def gpu_toleration() -> dict[str, str]:
    """The toleration of the taint that GPU nodes usually have."""
    return dict(_templates()["gpu_toleration"])


def _is_built_here(image: str) -> bool:
    images = references.load().images
    return any(images.pins.get(key) == image for key in images.built_here)


def _metadata(spec: LaunchSpec, settings: Settings, namespace: str, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "labels": {**settings.labels, JOB_ID_LABEL: spec.job_id, NETWORK_ARCH_LABEL: spec.network_arch},
        # A model path and a registry's owner are not written as a label's value may be.
        "annotations": {
            **settings.annotations,
            MODEL_PATH_LABEL: spec.model_path,
            REGISTRY_LABEL: paths.shared_registry_owner(),
        },
    }


def _env(spec: LaunchSpec) -> list[dict[str, Any]]:
    by_reference = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": name_of(spec.job_id), "key": name}}}
        for name in spec.secret_env
    ]
    return [{"name": name, "value": _literal(value)} for name, value in spec.env.items()] + by_reference


def _literal(text: str) -> str:
    # Kubernetes expands $(NAME) in values and commands and makes one $ of two; doubled, each one stays as it is.
    return text.replace("$", "$$")


def _resources(spec: LaunchSpec, settings: Settings) -> dict[str, Any]:
    limits = dict(settings.limits)
    if spec.num_gpus:
        limits[GPU] = str(spec.num_gpus)
    parts = {"requests": dict(settings.requests), "limits": limits}
    return {name: quantities for name, quantities in parts.items() if quantities}


def _mount(pod: dict[str, Any], container: dict[str, Any], spec: LaunchSpec, settings: Settings) -> None:
    for number, mount in enumerate(spec.mounts):
        pod["volumes"].append({"name": f"mount-{number}", "hostPath": {"path": mount.source}})
        container["volumeMounts"].append(
            {"name": f"mount-{number}", "mountPath": mount.target, "readOnly": mount.read_only}
        )
    names: dict[str, str] = {}
    for claim in settings.claims:
        if claim.name not in names:
            names[claim.name] = f"claim-{len(names)}"
            pod["volumes"].append({"name": names[claim.name], "persistentVolumeClaim": {"claimName": claim.name}})
        mounted = {"name": names[claim.name], "mountPath": claim.target, "readOnly": claim.read_only}
        container["volumeMounts"].append({**mounted, "subPath": claim.folder} if claim.folder else mounted)


def _docker_config(registry: str, key: str) -> str:
    basic = base64.b64encode(f"{_NGC_USER}:{key}".encode()).decode()
    if key == f"${{{NGC_KEY}}}":
        basic = f"base64({_NGC_USER}:{key})"
    return json.dumps({"auths": {registry: {"username": _NGC_USER, "password": key, "auth": basic}}})


@functools.cache
def _templates() -> Any:
    import yaml

    return yaml.safe_load(Path(__file__).with_name("kubernetes_objects.yaml").read_text(encoding="utf-8"))


def pull_secret_needs(settings: Settings) -> tuple[str, ...]:
    """The names of the secrets that the objects need beyond those of the launch spec."""
    return (NGC_KEY,) if settings.create_image_pull_secret else ()

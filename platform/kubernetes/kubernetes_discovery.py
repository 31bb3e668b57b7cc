"""Our services as the cluster knows them, for a registry that has lost them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import kubernetes_address as address
import kubernetes_forward as forward
import kubernetes_objects as objects
from kubernetes_cluster import PLATFORM, Access, Cluster
from kubernetes_options import CLUSTER_IP, LOAD_BALANCER

from inference_service.contracts import (
    JOB_ID_LABEL,
    MODEL_PATH_LABEL,
    NETWORK_ARCH_LABEL,
    STOP_AFTER_LABEL,
    StartedService,
)
from inference_service.errors import ToolError

_ENDED = ("Complete", "Failed", "FailureTarget")


def discover(cluster: Cluster, namespaces: Sequence[str], starting: Collection[str]) -> list[StartedService]:
    """Every service of this registry that has not ended.

    It is looked for everywhere, or in `namespaces` where this account may not look elsewhere. Of those that are
    `starting` (job_ids), one whose pod was not released yet is not a service: its starter releases or removes it.

    Raises:
        ToolError: the cluster cannot be asked.
    """
    core, batch = cluster.core, cluster.batch
    found = _everywhere(cluster, namespaces, core.list_service_for_all_namespaces, core.list_namespaced_service)
    services = {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in found}
    jobs = _everywhere(cluster, namespaces, batch.list_job_for_all_namespaces, batch.list_namespaced_job)
    return [
        _described(cluster, job, services.get((job["metadata"]["namespace"], job["metadata"]["name"])))
        for job in jobs
        if objects.is_ours(job) and not _has_ended(job) and not _is_unfinished(job, starting)
    ]


def url_of(cluster: Cluster, service: Mapping[str, Any] | None, node_address: str | None = None) -> str:
    """Where a Service answers, without a port-forward; empty when that is not known (yet)."""
    if service is None:
        return ""
    kind = service["spec"]["type"]
    if kind == CLUSTER_IP:
        return address.url(service["spec"]["clusterIP"], address.port(service)) if cluster.access.in_cluster else ""
    if kind == LOAD_BALANCER:
        host = address.load_balancer_host(service)
        return address.url(host, address.port(service)) if host else ""
    try:
        return address.url(address.node_host(cluster, node_address), address.node_port(service))
    except ToolError:
        return ""


def _everywhere(
    cluster: Cluster, namespaces: Sequence[str], list_all: Any, list_namespaced: Any
) -> list[Mapping[str, Any]]:
    try:
        items: list[Mapping[str, Any]] = cluster.ask(list_all, label_selector=JOB_ID_LABEL)["items"]
        return items
    except ToolError as error:
        if error.type != "kubernetes_forbidden":
            raise
    listed = [cluster.ask(list_namespaced, name, label_selector=JOB_ID_LABEL)["items"] for name in namespaces]
    return [item for items in listed for item in items]


def _described(cluster: Cluster, job: Mapping[str, Any], service: Mapping[str, Any] | None) -> StartedService:
    metadata = job["metadata"]
    labels, annotations = metadata["labels"], metadata["annotations"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    access: Access = replace(cluster.access, namespace=metadata["namespace"])
    extras = {**access.extras(), "service_type": service["spec"]["type"] if service else None}
    extras["secrets"] = [name for name in annotations.get(objects.SECRETS_ANNOTATION, "").split(",") if name]
    host_url, host_port = url_of(cluster, service), None
    forwards = forward.running(labels[JOB_ID_LABEL]) if service and service["spec"]["type"] == CLUSTER_IP else []
    if forwards and not access.in_cluster:
        host_url, host_port = forwards[0].url, forwards[0].port
        extras[forward.FIELD] = forwards[0].to_json()
    return StartedService(
        job_id=labels[JOB_ID_LABEL],
        network_arch=labels.get(NETWORK_ARCH_LABEL, ""),
        platform=PLATFORM,
        host_url=host_url,
        image=container["image"],
        model_path=annotations.get(MODEL_PATH_LABEL, ""),
        num_gpus=int(((container.get("resources") or {}).get("limits") or {}).get(objects.GPU, 0)),
        platform_job_id=metadata["name"],
        host_port=host_port,
        docker_url=address.url(service["spec"]["clusterIP"], address.port(service)) if service else None,
        started_at=metadata["creationTimestamp"],
        stop_after=annotations.get(STOP_AFTER_LABEL),
        extras=extras,
    )


def _is_unfinished(job: Mapping[str, Any], starting: Collection[str]) -> bool:
    return bool(job["spec"].get("suspend")) and job["metadata"]["labels"][JOB_ID_LABEL] in starting


def _has_ended(job: Mapping[str, Any]) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    deleted = "deletionTimestamp" in job["metadata"]
    return deleted or any(item["type"] in _ENDED and item["status"] == "True" for item in conditions)

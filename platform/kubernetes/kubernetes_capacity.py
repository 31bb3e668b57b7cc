"""Whether the cluster has room, asked before anything is made (facts: kubernetes).

There is no gang scheduling: a Job that asks for more GPUs than any one node has stays Pending for ever. Nodes and the
pods of other namespaces may be hidden from this account; then that is said, and the cluster has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kubernetes_objects as objects
from kubernetes_cluster import Cluster
from kubernetes_options import LOAD_BALANCER, NODE_PORT, Settings

from inference_service.contracts import LaunchSpec, Progress, Report
from inference_service.errors import ToolError

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([numkMGTPE]|[KMGTPE]i)?(?:e(\d+))?")
_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}
_KEEPING_AWAY = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class NodeGpus:
    """The GPUs of one node that the pod may run on: how many it has, and how many of them nobody has asked for."""

    node: str
    total: int
    free: int


def require(cluster: Cluster, spec: LaunchSpec, settings: Settings, namespace: str, report: Report) -> None:
    """Refuse (ToolError) a launch that the cluster has no GPUs for, or that the namespace's quota forbids."""
    _require_quota(cluster, spec, settings, namespace, report)
    if not spec.num_gpus or settings.allow_pending:
        return
    report(Progress("checking", f"looking for {spec.num_gpus} GPU(s) on one node"))
    try:
        found = gpus(cluster, settings.node_selector, objects.tolerations_of(spec, settings), report)
    except ToolError as error:
        if error.type != "kubernetes_forbidden":
            raise
        report(Progress("checking", "this account may not list nodes: the cluster's GPUs are not checked beforehand"))
        return
    refuse_too_large(found, spec.num_gpus, settings.node_selector)


def gpus(
    cluster: Cluster,
    selector: Mapping[str, str],
    tolerations: Sequence[Mapping[str, str]],
    report: Report | None = None,
) -> list[NodeGpus]:
    """The GPUs of each node that a pod with this selector and these tolerations may run on."""
    nodes = cluster.ask(cluster.core.list_node)["items"]
    running = "status.phase!=Succeeded,status.phase!=Failed"
    try:
        pods = cluster.ask(cluster.core.list_pod_for_all_namespaces, field_selector=running)["items"]
    except ToolError as error:
        if error.type != "kubernetes_forbidden":
            raise
        pods = []
        if report is not None:
            report(Progress("checking", "this account may not list all pods: GPUs in use are not seen"))
    return gpus_of(nodes, pods, selector, tolerations)


def gpus_of(
    nodes: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    selector: Mapping[str, str],
    tolerations: Sequence[Mapping[str, str]],
) -> list[NodeGpus]:
    """The same, from the API server's nodes and pods."""
    used: dict[str, int] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if node:
            used[node] = used.get(node, 0) + _gpus_of_pod(pod)
    found = []
    for node in nodes:
        name = node["metadata"]["name"]
        total = int(amount((node["status"].get("allocatable") or {}).get(objects.GPU, "0")))
        if total and _may_run_on(node, selector, tolerations):
            found.append(NodeGpus(name, total, max(0, total - used.get(name, 0))))
    return found


def refuse_too_large(found: Sequence[NodeGpus], num_gpus: int, selector: Mapping[str, str]) -> None:
    """Refuse (ToolError) what no node can run, or none can run now."""
    most = max((node.total for node in found), default=0)
    free = max((node.free for node in found), default=0)
    where = f" with the labels {','.join(f'{key}={value}' for key, value in selector.items())}" if selector else ""
    wait = "add --allow-pending to let it wait for one"
    if most < num_gpus:
        raise ToolError(
            "gpu_capacity",
            f"{num_gpus} GPU(s) were asked for, but no node{where} has more than {most}: it would wait for ever",
            f"use --num-gpus {most}"
            if most
            else "kubectl describe nodes: does the NVIDIA device plugin run? If nodes are added on demand, " + wait,
            most_on_one_node=most,
            free_on_one_node=free,
        )
    if free < num_gpus:
        raise ToolError(
            "gpu_capacity",
            f"{num_gpus} GPU(s) were asked for; no node{where} has that many free now (at most {free} of {most})",
            f"stop a service (python scripts/registry.py list), or {wait}",
            most_on_one_node=most,
            free_on_one_node=free,
        )


def amount(quantity: Any) -> float:
    """The number that a Kubernetes quantity stands for: "500m" is 0.5, "1Ki" is 1024."""
    parsed = _QUANTITY.fullmatch(str(quantity))
    if parsed is None:
        return 0.0
    return float(parsed[1]) * _UNITS[parsed[2] or ""] * 10.0 ** int(parsed[3] or 0)


def needed(spec: LaunchSpec, settings: Settings) -> dict[str, float]:
    """What one service takes of a ResourceQuota, by the quota's own names."""
    secrets = bool(spec.secret_env) + settings.create_image_pull_secret
    takes: dict[str, float] = {"pods": 1, "count/pods": 1, "count/jobs.batch": 1, "services": 1, "count/services": 1}
    takes |= {"secrets": secrets, "count/secrets": secrets, f"requests.{objects.GPU}": spec.num_gpus}
    takes["services.loadbalancers"] = settings.service_type == LOAD_BALANCER
    takes["services.nodeports"] = settings.service_type in (LOAD_BALANCER, NODE_PORT)
    for prefix, quantities in (("requests", settings.requests), ("limits", settings.limits)):
        for resource, quantity in quantities.items():
            takes[f"{prefix}.{resource}"] = amount(quantity)
    takes |= {resource: amount(quantity) for resource, quantity in settings.requests.items()}
    return takes


def over_quota(quotas: Iterable[Mapping[str, Any]], takes: Mapping[str, float]) -> str:
    """Which quota has not enough left, in words; empty when all have."""
    for quota in quotas:
        if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):
            continue
        status = quota.get("status") or {}
        for resource, hard in (status.get("hard") or {}).items():
            used = (status.get("used") or {}).get(resource, "0")
            if takes.get(resource, 0) and amount(used) + takes[resource] > amount(hard):
                name = quota["metadata"]["name"]
                return f"{resource}: {takes[resource]:g} asked for, {used} of {hard} used (ResourceQuota {name})"
    return ""


def _require_quota(cluster: Cluster, spec: LaunchSpec, settings: Settings, namespace: str, report: Report) -> None:
    try:
        quotas = cluster.ask(cluster.core.list_namespaced_resource_quota, namespace)["items"]
    except ToolError as error:
        if error.type != "kubernetes_forbidden":
            raise
        report(Progress("checking", "this account may not list quotas: they are not checked beforehand"))
        return
    over = over_quota(quotas, needed(spec, settings))
    if over:
        raise ToolError(
            "quota_exceeded",
            f"the quota of the namespace {namespace} has no room for it: {over}",
            f"kubectl -n {namespace} describe quota; stop a service, or use another --namespace",
        )


def _gpus_of_pod(pod: Mapping[str, Any]) -> int:
    def asked(containers: Iterable[Mapping[str, Any]]) -> list[int]:
        return [
            int(amount(((item.get("resources") or {}).get("requests") or {}).get(objects.GPU, "0")))
            for item in containers
        ]

    return max([sum(asked(pod["spec"].get("containers") or ())), *asked(pod["spec"].get("initContainers") or ())])


def _may_run_on(node: Mapping[str, Any], selector: Mapping[str, str], tolerations: Sequence[Mapping[str, str]]) -> bool:
    labels = node["metadata"].get("labels") or {}
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"].get("conditions") or ())
    taints = [taint for taint in node["spec"].get("taints") or () if taint["effect"] in _KEEPING_AWAY]
    return (
        ready
        and not node["spec"].get("unschedulable")
        and all(labels.get(key) == value for key, value in selector.items())
        and all(any(_tolerates(toleration, taint) for toleration in tolerations) for taint in taints)
    )


def _tolerates(toleration: Mapping[str, str], taint: Mapping[str, str]) -> bool:
    return (
        toleration["key"] == taint["key"]
        and toleration.get("effect") in (None, taint["effect"])
        and (toleration["operator"] == "Exists" or toleration.get("value", "") == taint.get("value", ""))
    )

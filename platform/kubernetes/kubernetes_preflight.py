"""What has to be in order before a service can run on the cluster; each failed check says the command that mends it."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_cluster as clusters
from kubernetes_cluster import Access, Cluster
from kubernetes_options import NGC_REGISTRY

from inference_service.contracts import Check
from inference_service.errors import BadInput, ToolError

ROLE_FILE = Path(__file__).with_name("kubernetes_role.yaml")
_NGC_KEY = "NGC_KEY"
_PATIENCE_SECONDS = 5.0


def checks() -> list[Check]:
    """The checks in their order; those that need what failed before are left out."""
    return list(_checks())


def _checks() -> Iterator[Check]:
    try:
        package = clusters.package()
    except ToolError as error:
        yield Check("kubernetes package", False, error.message, error.fix)
        return
    yield Check("kubernetes package", True, f"kubernetes {package.__version__}")
    try:
        access = clusters.find()
        cluster = Cluster(access)
    except (ToolError, BadInput) as error:
        yield Check("cluster chosen", False, error.message, error.fix)
        return
    yield Check("cluster chosen", True, _described(access, cluster))
    try:
        version = cluster.ask(cluster.version.get_code, patience=_PATIENCE_SECONDS)
    except ToolError as error:
        yield Check("API server", False, error.message, error.fix)
        return
    yield Check("API server", True, f"Kubernetes {version['gitVersion']} at {cluster.server}")
    yield _namespace(cluster)
    yield _rights(cluster)
    yield _gpus(cluster)
    yield _pull_secret(cluster)
    if not access.in_cluster:
        yield Check(
            "kubectl (not needed)", True, shutil.which("kubectl") or "not installed; only the mends below use it"
        )


def _described(access: Access, cluster: Cluster) -> str:
    if access.in_cluster:
        return f"the cluster of this pod, namespace {access.namespace}"
    return f"context {access.context} of {access.kubeconfig}, namespace {access.namespace} ({cluster.server})"


def _namespace(cluster: Cluster) -> Check:
    name, namespace = "namespace", cluster.access.namespace
    try:
        if cluster.ask_or_none(cluster.core.read_namespace, namespace, patience=_PATIENCE_SECONDS) is None:
            return Check(name, False, f"{namespace} does not exist", f"kubectl create namespace {namespace}")
    except ToolError as error:
        if error.type == "kubernetes_forbidden":
            return Check(name, True, f"{namespace}; this account may not ask whether it exists")
        return Check(name, False, error.message, error.fix)
    return Check(name, True, namespace)


@functools.cache
def rights() -> tuple[tuple[str, str, str], ...]:
    """(verb, API group, resource or resource/subresource) of every right in kubernetes_role.yaml."""
    import yaml

    rules = yaml.safe_load(ROLE_FILE.read_text(encoding="utf-8"))["rules"]
    return tuple(
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def _rights(cluster: Cluster) -> Check:
    namespace = cluster.access.namespace
    try:
        missing = [
            f"{verb} {resource}" for verb, group, resource in rights() if not _may(cluster, verb, group, resource)
        ]
    except ToolError as error:
        return Check("rights", False, error.message, error.fix)
    if missing:
        return Check(
            "rights",
            False,
            f"in the namespace {namespace} this account may not: {', '.join(missing)}",
            f"kubectl -n {namespace} apply -f {ROLE_FILE}, and bind the Role to this account",
        )
    return Check("rights", True, f"all {len(rights())} that are needed in the namespace {namespace}")


def _may(cluster: Cluster, verb: str, group: str, resource: str) -> bool:
    resource, _slash, subresource = resource.partition("/")
    attributes = {"namespace": cluster.access.namespace, "verb": verb, "group": group, "resource": resource}
    review: dict[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {**attributes, "subresource": subresource}},
    }
    create = cluster.authorization.create_self_subject_access_review
    return bool(cluster.ask(create, review, patience=_PATIENCE_SECONDS)["status"]["allowed"])


def _gpus(cluster: Cluster) -> Check:
    import kubernetes_capacity as capacity
    import kubernetes_objects as objects

    try:
        found = capacity.gpus(cluster, {}, [objects.gpu_toleration()])
    except ToolError as error:
        if error.type == "kubernetes_forbidden":
            return Check("GPUs", True, "this account may not list nodes: capacity is not checked before a start")
        return Check("GPUs", False, error.message, error.fix)
    if not found:
        return Check(
            "GPUs",
            True,
            f"no ready node advertises {objects.GPU}: only network archs that need none can run here; "
            "with GPUs in the nodes, the NVIDIA device plugin is missing",
        )
    most = max(found, key=lambda node: node.free)
    free, total = sum(node.free for node in found), sum(node.total for node in found)
    return Check("GPUs", True, f"{free} of {total} free on {len(found)} node(s); at most {most.free} on one")


def _pull_secret(cluster: Cluster, environ: Mapping[str, str] = os.environ) -> Check:
    name = f"pulling from {NGC_REGISTRY}"
    if environ.get(_NGC_KEY):
        return Check(name, True, f"{_NGC_KEY} is set: --create-image-pull-secret makes the Secret")
    selector = "type=kubernetes.io/dockerconfigjson"
    namespace = cluster.access.namespace
    try:
        listed = cluster.ask(
            cluster.core.list_namespaced_secret, namespace, field_selector=selector, patience=_PATIENCE_SECONDS
        )["items"]
    except ToolError:
        listed = []  # The right to list Secrets is not one that is needed.
    if listed:
        names = ", ".join(sorted(secret["metadata"]["name"] for secret in listed))
        return Check(name, True, f"Secrets for images in {namespace}: {names} (--image-pull-secret NAME)")
    return Check(
        name,
        True,
        f"{_NGC_KEY} is not set, and no Secret for images is seen in the namespace {namespace}: for NVIDIA's images "
        f"export {_NGC_KEY}=… and use --create-image-pull-secret, or --image-pull-secret NAME",
    )

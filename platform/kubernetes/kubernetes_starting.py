"""Starting a service: all of it or nothing.

The Job is made first, suspended, so that the Secrets and the Service can be owned by it; its pod is released last. So
a start that is killed at any point leaves at most a Job that runs nothing and one delete removes.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import kubernetes_address as address
import kubernetes_capacity as capacity
import kubernetes_errors
import kubernetes_forward as forward
import kubernetes_objects as objects
import kubernetes_status
from kubernetes_cluster import PLATFORM, Cluster
from kubernetes_options import CLUSTER_IP, LOAD_BALANCER, NODE_PORT, Settings

from inference_service import output
from inference_service.contracts import STOP_AFTER_LABEL, LaunchSpec, Progress, Report, StartedService
from inference_service.errors import BadInput, DecisionNeeded, ToolError
from inference_service.interruption import held_back

_REMOVAL_SECONDS = 60.0
_ASK_SECONDS = 0.2


def start(
    cluster: Cluster, spec: LaunchSpec, settings: Settings, secret_values: Mapping[str, str], report: Report
) -> StartedService:
    """Make the objects of one service and release its pod; where it answers is known when this returns.

    Raises:
        BadInput: another program listens on the port that is to be forwarded.
        DecisionNeeded: the load balancer got no address, and nobody is at a terminal to be asked. Nothing is left.
        ToolError: anything else. Nothing is left, or the message says what is.
    """
    access = cluster.access
    capacity.require(cluster, spec, settings, access.namespace, report)
    node_host = address.node_host(cluster, settings.node_address) if settings.service_type == NODE_PORT else None
    made = objects.build(spec, _marked(settings), access.namespace, secret_values)
    with contextlib.ExitStack() as stack:
        listener = None
        if settings.service_type == CLUSTER_IP and not access.in_cluster:
            listener = stack.enter_context(forward.listen(settings.forward_port))
        attempt = stack.enter_context(_undone_on_failure(cluster, spec.job_id, made))
        report(Progress("starting", f"Job {made.job['metadata']['name']} in the namespace {access.namespace}"))
        service = _create_all(cluster, made, attempt)
        return _reached(cluster, spec, settings, made, service, listener, node_host, report)


def _marked(settings: Settings) -> Settings:
    return replace(settings, annotations={**settings.annotations, objects.START_ANNOTATION: str(uuid.uuid4())})


def remove(cluster: Cluster, job_id: str, secrets: list[str]) -> None:
    """Delete a service's Job with its pod (foreground: else pods stay), Service and Secrets, and wait until gone.

    Raises:
        ToolError: something is still there; the fix removes it.
    """
    namespace, name = cluster.access.namespace, objects.name_of(job_id)
    foreground = {"propagationPolicy": "Foreground"}
    cluster.ask_or_none(cluster.batch.delete_namespaced_job, name, namespace, body=foreground)
    cluster.ask_or_none(cluster.core.delete_namespaced_service, name, namespace)
    for secret in secrets:
        cluster.ask_or_none(cluster.core.delete_namespaced_secret, secret, namespace)
    until = time.monotonic() + _REMOVAL_SECONDS
    while left := _what_is_left(cluster, job_id):
        if time.monotonic() > until:
            raise ToolError(
                "not_removed",
                f"the {left} of {name} in the namespace {namespace} is still there after {_REMOVAL_SECONDS:g} s",
                f"kubectl -n {namespace} delete job,pod,service,secret -l tao-job-id={job_id}",
            )
        time.sleep(_ASK_SECONDS)


def _what_is_left(cluster: Cluster, job_id: str) -> str:
    namespace = cluster.access.namespace
    if cluster.ask_or_none(cluster.batch.read_namespaced_job, objects.name_of(job_id), namespace):
        return "Job"
    return "pod" if kubernetes_status.pods_of(cluster, namespace, job_id) else ""


@dataclass
class _Attempt:
    """Whether the cluster may have something of this start."""

    left_something: bool = False


def _create_all(cluster: Cluster, made: objects.Objects, attempt: _Attempt) -> Any:
    """The Service as the cluster has it, after everything was made and the pod released."""
    namespace = cluster.access.namespace
    attempt.left_something = True
    try:
        job = _create(cluster, cluster.batch.create_namespaced_job, cluster.batch.read_namespaced_job, made.job)
    except ToolError as error:
        # A plain no leaves nothing that would have to be removed, perhaps without the right to. Silence may be a yes.
        attempt.left_something = not kubernetes_errors.is_refusal(error.__cause__)
        raise
    for secret in made.secrets:
        _create(cluster, cluster.core.create_namespaced_secret, None, objects.owned_by(secret, job))
    create, read = cluster.core.create_namespaced_service, cluster.core.read_namespaced_service
    service = _create(cluster, create, read, objects.owned_by(made.service, job))
    released = {"spec": {"suspend": False}}
    cluster.ask(cluster.batch.patch_namespaced_job, made.job["metadata"]["name"], namespace, released)
    return service


def _create(
    cluster: Cluster, create: Callable[..., Any], read: Callable[..., Any] | None, item: Mapping[str, Any]
) -> Any:
    name, namespace = item["metadata"]["name"], cluster.access.namespace
    try:
        return cluster.try_ask(create, namespace, dict(item))
    except kubernetes_errors.expected() as error:
        # A try before this one may have got through although its answer was lost.
        if kubernetes_errors.status_of(error) != 409:
            raise cluster.failure(error) from error
        existing = cluster.ask(read, name, namespace) if read else None
        if existing is not None and not _same_start(existing, item):
            raise BadInput(
                "job_id_taken",
                f"{name} exists in the namespace {namespace} already",
                "python scripts/registry.py reconcile takes it up if it is yours; a new start needs another job_id",
            ) from error
        return existing


def _same_start(existing: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    def start_of(metadata: Mapping[str, Any]) -> Any:
        return (metadata.get("annotations") or {}).get(objects.START_ANNOTATION)

    return bool(start_of(existing["metadata"]) == start_of(item["metadata"]) is not None)


def _reached(
    cluster: Cluster,
    spec: LaunchSpec,
    settings: Settings,
    made: objects.Objects,
    service: Mapping[str, Any],
    listener: socket.socket | None,
    node_host: str | None,
    report: Report,
) -> StartedService:
    access, name = cluster.access, made.job["metadata"]["name"]
    extras = {**access.extras(), "service_type": settings.service_type}
    extras["secrets"] = [secret["metadata"]["name"] for secret in made.secrets]
    host_port = None
    if listener is not None:
        forwarding = forward.start(listener, access, spec.job_id, spec.container_port)
        extras[forward.FIELD] = forwarding.to_json()
        host_url, host_port = forwarding.url, forwarding.port
    elif settings.service_type == CLUSTER_IP:
        host_url = address.url(service["spec"]["clusterIP"], address.port(service))
    elif settings.service_type == NODE_PORT:
        host_url = address.url(str(node_host), address.node_port(service))
    else:
        host = _load_balancer(cluster, spec, settings, name, report)
        if isinstance(host, Settings):
            return _reached_otherwise(cluster, spec, host, made, report)
        host_url = address.url(host, address.port(service))
    return StartedService(
        job_id=spec.job_id,
        network_arch=spec.network_arch,
        platform=PLATFORM,
        host_url=host_url,
        image=spec.image,
        model_path=spec.model_path,
        num_gpus=spec.num_gpus,
        platform_job_id=name,
        host_port=host_port,
        docker_url=address.url(service["spec"]["clusterIP"], address.port(service)),
        stop_after=made.job["metadata"]["annotations"].get(STOP_AFTER_LABEL),
        extras=extras,
    )


def _load_balancer(cluster: Cluster, spec: LaunchSpec, settings: Settings, name: str, report: Report) -> str | Settings:
    """The load balancer's host; or, where none came, the settings that the user at the terminal chose instead."""

    def status() -> Any:
        return kubernetes_status.ask(cluster, cluster.access.namespace, name, spec.job_id, patience=5.0)

    while True:
        timeout = settings.address_timeout
        host = address.wait_for_load_balancer(cluster, cluster.access.namespace, name, timeout, status, report)
        if host:
            return host
        answer = output.decide([address.question_without_address(name, timeout)])["service_type"]
        if answer != LOAD_BALANCER:
            return replace(settings, service_type=answer)


def _reached_otherwise(
    cluster: Cluster, spec: LaunchSpec, settings: Settings, made: objects.Objects, report: Report
) -> StartedService:
    """The same service through a Service of another type; its pod goes on loading meanwhile."""
    name, changed = made.job["metadata"]["name"], {"spec": {"type": settings.service_type}}
    service = cluster.ask(cluster.core.patch_namespaced_service, name, cluster.access.namespace, changed)
    if settings.service_type == NODE_PORT:
        host = address.node_host(cluster, settings.node_address)
        return _reached(cluster, spec, settings, made, service, None, host, report)
    with contextlib.ExitStack() as stack:
        listener = None
        if not cluster.access.in_cluster:
            listener = stack.enter_context(forward.listen(settings.forward_port))
        return _reached(cluster, spec, settings, made, service, listener, None, report)


@contextlib.contextmanager
def _undone_on_failure(cluster: Cluster, job_id: str, made: objects.Objects) -> Iterator[_Attempt]:
    attempt = _Attempt()
    try:
        yield attempt
    except BaseException as error:
        if not attempt.left_something:
            raise
        left = _undo(cluster, job_id, [secret["metadata"]["name"] for secret in made.secrets])
        if not left:
            raise
        if isinstance(error, ToolError | DecisionNeeded):
            raise ToolError(
                "start_not_undone", f"{error}; and what was made is still there: {left.message}", left.fix
            ) from error
        # Ctrl-C and TERM say their text as what became of it.
        error.args = (f"interrupted, and what was made is still there: {left.message}; {left.fix}",)
        raise


def _undo(cluster: Cluster, job_id: str, secrets: list[str]) -> ToolError | None:
    """Remove what was made; the error when that failed."""
    with held_back(deliver=False):
        try:
            forward.end_all(job_id, None)
            remove(cluster, job_id, secrets)
        except ToolError as error:
            return error
    return None

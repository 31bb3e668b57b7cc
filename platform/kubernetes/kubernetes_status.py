"""What became of a service: read from its Job, its pods and their events, in the cluster's own words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kubernetes_cluster import Cluster

from inference_service.contracts import JOB_ID_LABEL, PlatformStatus, State

# These never pass by themselves. Other pulls that fail are tried again by the cluster: a registry may be down.
_NEVER = ("InvalidImageName", "ErrImageNeverPull")
_PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError")
_PULL_REFUSED = re.compile(
    r"not found|unauthorized|authentication required|authorization failed|denied|forbidden|no basic auth|"
    r"manifest unknown",
    re.IGNORECASE,
)
_NEVER_CREATED = re.compile(r"violates PodSecurity|admission webhook .* denied", re.IGNORECASE)
_SUSPENDED = (
    "its start was interrupted before its pod was released; stop it: python scripts/stop_service.py --job-id {job_id}"
)

Item = Mapping[str, Any]


def ask(cluster: Cluster, namespace: str, name: str, job_id: str, patience: float) -> PlatformStatus:
    """The state now. One question while a pod runs, more while there is something to explain.

    Raises:
        ToolError: the cluster could not be asked.
    """
    pods = pods_of(cluster, namespace, job_id, patience)
    if pods and pod_status(newest(pods)).state is State.RUNNING:
        return pod_status(newest(pods))
    job = cluster.ask_or_none(cluster.batch.read_namespaced_job, name, namespace, patience=patience)
    if job is None:
        return PlatformStatus(State.EXITED, f"there is no Job {name} in the namespace {namespace}")
    explained = newest(pods) if pods else job
    events = _events(cluster, namespace, explained["metadata"]["uid"], patience)
    return status_of(job, pods, events)


def pods_of(cluster: Cluster, namespace: str, job_id: str, patience: float = 30.0) -> list[Item]:
    """The pods of a service; one, but for the moment when another takes its place."""
    selector = f"{JOB_ID_LABEL}={job_id}"
    items: list[Item] = cluster.ask(
        cluster.core.list_namespaced_pod, namespace, label_selector=selector, patience=patience
    )["items"]
    return items


def newest(pods: Sequence[Item]) -> Item:
    """The pod that counts: one that is not being deleted, else the last that was made."""
    return max(pods, key=lambda pod: ("deletionTimestamp" not in pod["metadata"], pod["metadata"]["creationTimestamp"]))


def status_of(job: Item, pods: Sequence[Item], events: Iterable[Item]) -> PlatformStatus:
    """The state of a Job that exists."""
    events = list(events)
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Failed", "FailureTarget"):
            why = [
                f"{condition.get('reason', '')}: {condition.get('message', '')}",
                _end_of(pods),
                _last_warning(events),
            ]
            return PlatformStatus(State.FAILED, "; ".join(part for part in why if part))
        if condition["status"] == "True" and condition["type"] in ("Complete", "SuccessCriteriaMet"):
            return PlatformStatus(State.EXITED, "the server ended by itself with exit status 0")
    if pods:
        status = pod_status(newest(pods))
        if status.state is State.PENDING and not status.reason:
            return PlatformStatus(State.PENDING, _last_event(events))
        return _with_pull_events(status, events)
    if (job.get("spec") or {}).get("suspend"):
        job_id = job["metadata"]["labels"].get(JOB_ID_LABEL, "J")
        return PlatformStatus(State.PENDING, _SUSPENDED.format(job_id=job_id))
    why_no_pod = _last_warning(events)
    return PlatformStatus(
        State.FAILED if _NEVER_CREATED.search(why_no_pod) else State.PENDING, why_no_pod or "its pod is being made"
    )


def pod_status(pod: Item) -> PlatformStatus:
    """The state of one pod."""
    status = pod.get("status") or {}
    phase = status.get("phase")
    if "deletionTimestamp" in pod["metadata"]:
        return PlatformStatus(State.FAILED, _disruption(status) or "its pod is being deleted")
    if phase == "Succeeded":
        return PlatformStatus(State.EXITED, "the server ended by itself with exit status 0")
    if phase == "Failed":
        return PlatformStatus(State.FAILED, _end_of([pod]) or "its pod failed")
    if phase == "Unknown":
        return PlatformStatus(State.UNKNOWN, "the node of its pod does not answer")
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        if "terminated" in state:
            return PlatformStatus(State.FAILED, _end_of([pod]))
        if "waiting" in state:
            return _waiting(state["waiting"])
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return PlatformStatus(State.PENDING, f"{condition.get('reason', '')}: {condition.get('message', '')}")
    return PlatformStatus(State.RUNNING if phase == "Running" else State.PENDING)


def _waiting(waiting: Mapping[str, Any]) -> PlatformStatus:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    told = f"{reason}: {message}" if message else reason
    refused = reason in _PULLING and _PULL_REFUSED.search(message)
    if refused:
        told += " (check the image's name, and --image-pull-secret)"
    if reason == "ErrImageNeverPull":
        told += " (no registry serves it: load it into the nodes, or push it to yours and name it by IMAGE_<KEY>)"
    if reason in ("ContainerCreating", "PodInitializing"):
        return PlatformStatus(State.PENDING)
    return PlatformStatus(State.FAILED if refused or reason in _NEVER else State.PENDING, told)


def _with_pull_events(status: PlatformStatus, events: Sequence[Item]) -> PlatformStatus:
    # Between two tries the container only says that it waits for the next; why the last failed is an event.
    if status.state is State.PENDING and status.reason.startswith(_PULLING):
        for event in reversed(events):
            if event.get("reason") == "Failed" and _PULL_REFUSED.search(event.get("message", "")):
                return _waiting({"reason": "ErrImagePull", "message": event["message"]})
    return status


def _end_of(pods: Sequence[Item]) -> str:
    """How the newest pod's container ended, in words; empty when it has not."""
    if not pods:
        return ""
    status = newest(pods).get("status") or {}
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message', '')}"
    disrupted = _disruption(status)
    if disrupted:
        return disrupted
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            message = f": {ended['message']}" if ended.get("message") else ""
            return f"{ended.get('reason', 'Error')}, exit status {ended.get('exitCode')}{message}"
    return ""


def _disruption(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return ""


def _events(cluster: Cluster, namespace: str, uid: str, patience: float) -> list[Item]:
    from inference_service.errors import ToolError

    try:
        selector = f"involvedObject.uid={uid}"
        found = cluster.ask(cluster.core.list_namespaced_event, namespace, field_selector=selector, patience=patience)
    except ToolError:
        return []  # Events only explain; an account that may not read them still gets the state.
    return sorted(found["items"], key=_when)


def _when(event: Item) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def _last_warning(events: Iterable[Item]) -> str:
    return _last_event([event for event in events if event.get("type") == "Warning"])


def _last_event(events: Sequence[Item]) -> str:
    return f"{events[-1].get('reason', '')}: {events[-1].get('message', '')}" if events else ""

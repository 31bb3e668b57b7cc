"""What became of a service, from objects as real clusters have returned them."""

from __future__ import annotations

from typing import Any

import kubernetes_address as address
import kubernetes_status
import pytest

from inference_service.contracts import PlatformStatus, State

MADE = "2026-11-24T10:00:00Z"


def pod(phase: str, deleted: bool = False, **status: Any) -> dict[str, Any]:
    metadata = {"name": "p", "uid": "u", "creationTimestamp": MADE}
    return {
        "metadata": metadata | ({"deletionTimestamp": MADE} if deleted else {}),
        "status": {"phase": phase, **status},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod("Pending", containerStatuses=[{"state": {"waiting": {"reason": reason, "message": message}}}])


def job(*conditions: tuple[str, str, str], suspend: bool = False) -> dict[str, Any]:
    stated = [{"type": kind, "status": "True", "reason": why, "message": text} for kind, why, text in conditions]
    metadata = {"name": "tao-1", "uid": "j", "labels": {"tao-job-id": "1"}}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": {"conditions": stated}}


def event(reason: str, message: str, kind: str = "Warning") -> dict[str, Any]:
    return {"type": kind, "reason": reason, "message": message, "metadata": {"creationTimestamp": MADE}}


def status_of(*pods: Any, of: Any = None, events: Any = ()) -> PlatformStatus:
    return kubernetes_status.status_of(of or job(), list(pods), events)


def test_a_pod_that_runs_is_running() -> None:
    assert status_of(pod("Running", containerStatuses=[{"state": {"running": {}}}])).state is State.RUNNING


def test_a_pod_without_a_node_is_pending_with_the_schedulers_words() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    found = status_of(
        pod("Pending", conditions=[{**condition, "message": "0/3 nodes: 3 Insufficient nvidia.com/gpu."}])
    )
    assert found == PlatformStatus(State.PENDING, "Unschedulable: 0/3 nodes: 3 Insufficient nvidia.com/gpu.")


@pytest.mark.parametrize(
    ("reason", "message", "state"),
    [
        ("ErrImagePull", "failed to resolve reference: docker.io/x/y:1: not found", State.FAILED),
        ("ErrImagePull", "pull access denied, repository does not exist or may require authorization", State.FAILED),
        ("ErrImagePull", "failed to authorize: unexpected status: 401 Unauthorized", State.FAILED),
        ("ErrImagePull", "dial tcp: lookup nvcr.io: no such host", State.PENDING),
        ("ErrImagePull", "unexpected status code 503 Service Unavailable", State.PENDING),
        ("ImagePullBackOff", 'Back-off pulling image "x"', State.PENDING),
        ("ErrImageNeverPull", "Container image is not present with pull policy of Never", State.FAILED),
        ("InvalidImageName", "couldn't parse image name", State.FAILED),
        ("ContainerCreating", "", State.PENDING),
        ("CreateContainerConfigError", 'secret "x" not found', State.PENDING),
    ],
)
def test_a_container_that_waits_is_failed_only_when_waiting_cannot_help(
    reason: str, message: str, state: State
) -> None:
    found = status_of(waiting(reason, message))
    assert found.state is state
    assert reason == "ContainerCreating" or message in found.reason


def test_between_two_tries_the_last_pulls_error_is_the_reason() -> None:
    failed = event("Failed", 'Failed to pull image "x": pull access denied')
    found = status_of(
        waiting("ImagePullBackOff", "Back-off pulling image"), events=[failed, event("BackOff", "Back-off")]
    )
    assert found.state is State.FAILED
    assert "pull access denied" in found.reason


def test_a_crash_says_exit_status_and_reason() -> None:
    ended = {"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    of = job(("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"))
    found = status_of(pod("Failed", containerStatuses=[ended]), of=of)
    assert found.state is State.FAILED
    assert "OOMKilled, exit status 137" in found.reason


def test_an_eviction_is_told_apart() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicting"}
    found = status_of(pod("Running", deleted=True, conditions=[condition]))
    assert found == PlatformStatus(State.FAILED, "EvictionByEvictionAPI: evicting")


def test_a_deadline_is_the_jobs_word() -> None:
    found = status_of(of=job(("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")))
    assert found.state is State.FAILED
    assert found.reason.startswith("DeadlineExceeded")


def test_a_server_that_ended_well_has_exited() -> None:
    assert status_of(of=job(("Complete", "", ""))).state is State.EXITED
    assert status_of(pod("Succeeded")).state is State.EXITED


def test_a_node_that_does_not_answer_says_nothing_of_the_service() -> None:
    assert status_of(pod("Unknown")).state is State.UNKNOWN


def test_a_job_whose_pod_may_not_be_made_says_why() -> None:
    quota = event("FailedCreate", 'pods "x" is forbidden: exceeded quota: q')
    assert status_of(events=[quota]) == PlatformStatus(State.PENDING, f"FailedCreate: {quota['message']}")
    policy = event("FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted:latest"')
    assert status_of(events=[policy]).state is State.FAILED


def test_a_job_that_was_never_released_says_how_to_be_rid_of_it() -> None:
    found = status_of(of=job(suspend=True))
    assert found.state is State.PENDING
    assert "stop_service.py --job-id 1" in found.reason


def test_the_pod_that_is_not_being_deleted_counts() -> None:
    old, new = pod("Running", deleted=True), pod("Running")
    assert kubernetes_status.newest([new, old]) is new
    assert kubernetes_status.newest([old, new]) is new


@pytest.mark.parametrize(
    ("ingress", "host"),
    [
        ([{"ip": "203.0.113.7"}], "203.0.113.7"),
        ([{"hostname": "lb.elb.amazonaws.com"}], "lb.elb.amazonaws.com"),
        ([{}, {"ip": "2001:db8::7"}], "2001:db8::7"),
        ([], None),
        (None, None),
    ],
)
def test_a_load_balancer_has_an_address_or_a_host_name(ingress: Any, host: str | None) -> None:
    assert address.load_balancer_host({"status": {"loadBalancer": {"ingress": ingress}}}) == host


def test_an_ipv6_address_is_written_as_a_url_wants_it() -> None:
    assert address.url("2001:db8::7", 8080) == "http://[2001:db8::7]:8080"
    assert address.url("lb.example.com", 80) == "http://lb.example.com:80"


def test_the_outer_address_of_a_ready_node_is_preferred() -> None:
    def node(ready: str, **addresses: str) -> dict[str, Any]:
        listed = [{"type": kind, "address": value} for kind, value in addresses.items()]
        return {"status": {"addresses": listed, "conditions": [{"type": "Ready", "status": ready}]}}

    nodes = [
        node("False", ExternalIP="1.1.1.1"),
        node("True", InternalIP="10.0.0.2"),
        node("True", ExternalIP="3.3.3.3"),
    ]
    assert address.best_node_address(nodes) == "3.3.3.3"
    assert address.best_node_address(nodes[:2]) == "10.0.0.2"
    assert address.best_node_address(nodes[:1]) is None

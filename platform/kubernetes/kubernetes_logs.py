"""A service's log as it came, from the pod that counts; a stream that breaks off is taken up where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import kubernetes_errors
import kubernetes_status
from kubernetes_cluster import Cluster

from inference_service.contracts import PlatformStatus
from inference_service.errors import ToolError

_PAUSE_SECONDS = 1.0
_MOST_FAILURES = 30


def lines(
    cluster: Cluster, namespace: str, job_id: str, tail: int | None, follow: bool, status: Callable[[], PlatformStatus]
) -> Iterator[str]:
    """The log's lines; with `follow`, until the service has ended. A pod that has not started yet has none.

    Raises:
        ToolError: there is no pod and so no log, or it cannot be read.
    """
    pod = _pod(cluster, namespace, job_id, follow, status)
    last, failures = "", 0
    while True:
        known = last
        options: dict[str, Any] = {"follow": follow, "timestamps": True}
        if last:
            options["since_seconds"] = _seconds_since(last)
        elif tail is not None:
            options["tail_lines"] = tail
        try:
            for line in cluster.lines(
                cluster.core.read_namespaced_pod_log, pod, namespace, read_timeout=None, **options
            ):
                moment, _space, text = line.decode(errors="replace").partition(" ")
                if moment > known:
                    last, failures = moment, 0
                    yield text.rstrip("\r")
        except kubernetes_errors.expected() as error:
            if not _has_not_started(error):
                failures += 1
                if not follow or not kubernetes_errors.is_passing(error) or failures > _MOST_FAILURES:
                    raise cluster.failure(error) from error
            elif not follow:
                return
        if not follow or status().dead:
            return
        time.sleep(_PAUSE_SECONDS)


def _pod(cluster: Cluster, namespace: str, job_id: str, follow: bool, status: Callable[[], PlatformStatus]) -> str:
    while True:
        pods = kubernetes_status.pods_of(cluster, namespace, job_id)
        if pods:
            return str(kubernetes_status.newest(pods)["metadata"]["name"])
        now = status()
        if now.dead or not follow:
            raise ToolError(
                "no_log",
                f"the service {job_id} has no pod, and so no log: {now.reason}",
                "python scripts/registry.py reconcile",
            )
        time.sleep(_PAUSE_SECONDS)


def _has_not_started(error: BaseException) -> bool:
    told = kubernetes_errors.explanation(error)
    return kubernetes_errors.status_of(error) == 400 and ("waiting to start" in told or "does not have a host" in told)


def _seconds_since(moment: str) -> int:
    # The cluster's clock is not this machine's: a minute more than needed is asked for, and known lines are skipped.
    then = datetime.fromisoformat(moment[:19]).replace(tzinfo=timezone.utc)
    return max(1, int((datetime.now(timezone.utc) - then).total_seconds()) + 60)

"""Two replicas of the gateway over one PostgreSQL on a real cluster: updates, killed pods, budgets, neighbours."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import psutil
import pytest
import requests
from doubles import anthropic_api
from gateway_cluster import MODEL, GatewayCluster, gateway_cluster
from kubernetes_engine import MODEL as SMOLLM2_MODEL
from kubernetes_engine import is_local
from requests.adapters import HTTPAdapter
from steady_load import Load, steady_load
from support import eventually, run_script
from urllib3.util import Retry

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.xdist_group("kubernetes-gateway")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayCluster]:
    with gateway_cluster(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture(autouse=True)
def two_replicas(cluster: GatewayCluster) -> None:
    """What a test did to the pods is over before the next one begins."""
    cluster.wait()
    assert len(cluster.pods()) == 2


def logged(cluster: GatewayCluster) -> dict[str, dict[str, Any]]:
    """The log's rows by request id; amounts of money are texts."""
    columns = ("request_id", "http_status", "error_type", "output_tokens", "caller", "gateway")
    pairs = ", ".join(f"'{name}', {name}" for name in columns)
    lines = cluster.sql(f"SELECT json_build_object({pairs}, 'cost_usd', cost_usd::text) FROM requests")
    rows = [json.loads(line) for line in lines]
    return {row["request_id"]: row for row in rows}


def _knows(cluster: GatewayCluster, pod: str, job_id: str) -> bool:
    return job_id in cluster.configured(pod)


def none_is_missing(cluster: GatewayCluster, load: Load) -> None:
    """Each request that was answered whole has exactly one row, with its tokens and its cost."""
    assert len(set(load.completed)) == len(load.completed) > 50
    rows = logged(cluster)
    missing = [request_id for request_id in load.completed if request_id not in rows]
    assert missing == []
    for request_id in load.completed:
        row = rows[request_id]
        assert (row["http_status"], row["error_type"]) == (200, None), row
        assert int(row["output_tokens"]) > 0
        assert Decimal(row["cost_usd"]) > 0


def answered(load: Load, more: int = 50) -> None:
    """Wait until so many more requests have been answered."""
    wanted = len(load.completed) + more
    eventually(lambda: len(load.completed) >= wanted, timeout=60)


def test_the_pods_are_what_a_restricted_namespace_takes(cluster: GatewayCluster) -> None:
    told = cluster.kubectl("get", "pods", "-l", "app.kubernetes.io/name=tao-gateway", "-o", "json")
    for pod in json.loads(told)["items"]:
        (status,) = pod["status"]["containerStatuses"]
        assert status["restartCount"] == 0
    label = ("label", "--dry-run=server", "--overwrite", "namespace", cluster.namespace.name)
    told = cluster.run_kubectl(*label, "pod-security.kubernetes.io/enforce=restricted").stderr
    # The cluster names the pods that it would not have taken: the neighbours are here for the tests alone.
    assert "postgresql" in told
    assert "tao-gateway" not in told
    pod = cluster.pods()[0]
    script = "import os; print(os.getuid()); open('/opt/x', 'w')"
    with pytest.raises(AssertionError, match="Read-only file system"):
        cluster.kubectl("exec", pod, "--", "python3", "-c", script)


def test_a_rolling_update_under_load_fails_no_request(cluster: GatewayCluster) -> None:
    key = cluster.callers("add", "updater")["api_key"]
    before = set(cluster.pods())
    with steady_load(cluster.url, key, MODEL) as load:
        answered(load)
        cluster.kubectl("rollout", "restart", "deployment/tao-gateway")
        cluster.wait()
        eventually(lambda: not before & set(cluster.pods()))
        answered(load)
    assert load.failures == []
    none_is_missing(cluster, load)


def test_pods_that_are_killed_under_load_lose_no_answered_requests_row(cluster: GatewayCluster) -> None:
    key = cluster.callers("add", "survivor")["api_key"]
    first, second = cluster.pods()
    with steady_load(cluster.url, key, MODEL) as load:
        answered(load)
        cluster.kubectl("delete", "pod", first, "--grace-period=0", "--force")
        answered(load)
        cluster.wait()
        if is_local():
            os.kill(_process_in(second).pid, signal.SIGKILL)
            eventually(lambda: cluster.restarts(second) == 1, timeout=60)
        else:
            cluster.kubectl("delete", "pod", second, "--grace-period=0", "--force")
        answered(load)
        cluster.wait()
        answered(load)
    none_is_missing(cluster, load)


def _process_in(pod: str) -> psutil.Process:
    """The gateway's own process in that pod of this machine's cluster."""
    for process in psutil.process_iter(["cmdline"]):
        if any(word.endswith("serve_gateway.py") for word in process.info["cmdline"] or ()):
            try:
                if process.environ().get("HOSTNAME") == pod:
                    return process
            except psutil.Error:
                continue
    raise AssertionError(f"no process of {pod} runs on this machine")


def test_a_budget_holds_across_both_replicas(cluster: GatewayCluster) -> None:
    budget = Decimal("0.03")
    key = cluster.callers("add", "thrifty", "--usd-per-day", str(budget))["api_key"]
    body = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "one two three"}]}
    statuses: list[int] = []
    told: dict[str, Any] = {}
    enough = threading.Event()

    def spend() -> None:
        for _ in range(150):
            # A new connection each time, and with it either of the replicas. One that was just killed may not be back
            # yet: who cannot connect has asked nothing, and tries again.
            with requests.Session() as session:
                session.mount("http://", HTTPAdapter(max_retries=Retry(total=8, connect=8, read=0, backoff_factor=0.1)))
                answer = session.post(
                    f"{cluster.url}/v1/messages",
                    json=body,
                    headers={"x-api-key": key, "anthropic-version": "2023-06-01"},
                    timeout=30,
                )
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                told.update(answer.json())
                assert int(answer.headers["retry-after"]) > 0
                enough.set()
            assert answer.status_code in (200, 429), answer.text

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(spend) for _ in range(16)]:
            done.result()
    assert enough.is_set()
    assert "budget" in json.dumps(told)

    def spent() -> list[dict[str, Any]] | None:
        mine = [row for row in logged(cluster).values() if row["caller"] == "thrifty"]
        return mine if len(mine) == len(statuses) else None

    rows = eventually(spent)
    total = sum(Decimal(row["cost_usd"]) for row in rows if row["http_status"] == 200)
    assert 0 < total <= budget
    # What was refused did not fit, rather than being refused to be safe.
    assert total > budget / 2
    assert len({row["gateway"] for row in rows}) == 2


def test_a_service_of_the_cluster_is_reached_by_its_cluster_address(
    cluster: GatewayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.namespace.kubeconfig))
    start = ("--platform", "kubernetes", "--network-arch", "smollm2", "--model-path", SMOLLM2_MODEL)
    started = run_script("start_service", *start, "--service-type", "ClusterIP", timeout=300).document
    try:
        (entry,) = run_script("registry", "show", started["job_id"]).document["services"]
        assert entry["docker_url"].startswith(f"http://{cluster.cluster_address(entry['platform_job_id'])}:")
        key = cluster.callers("add", "neighbour")["api_key"]
        services = {started["job_id"]: {**entry, "host_url": entry["docker_url"]}}
        patch = json.dumps({"data": {"services.json": json.dumps(services)}})
        cluster.kubectl("patch", "configmap", "tao-gateway", "--type", "merge", "--patch", patch)
        # The kubelet brings it into each pod within a minute or so, and the gateway looks every second.
        for pod in cluster.pods():
            eventually(functools.partial(_knows, cluster, pod, started["job_id"]), timeout=150, every=1)
        body = {
            "model": started["job_id"],
            "temperature": 0,
            "max_tokens": 20,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }

        def ask() -> requests.Response | None:
            headers = {"authorization": f"Bearer {key}"}
            answer = requests.post(f"{cluster.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
            return None if answer.status_code == 404 else answer

        answer = eventually(ask, timeout=20)
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        row = eventually(lambda: logged(cluster).get(answer.headers["x-request-id"]))
        # Nobody has said what this machine costs.
        assert (row["caller"], row["cost_usd"]) == ("neighbour", None)
    finally:
        run_script("stop_service", "--all", expect=None)


def test_claude_is_a_service_of_the_cluster_like_any_other(
    cluster: GatewayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.namespace.kubeconfig))
    monkeypatch.setenv("ANTHROPIC_API_KEY", anthropic_api.KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://{cluster.cluster_address('anthropic')}:8080")
    monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", "the-key-of-whoever-started-it")
    start = ("--platform", "kubernetes", "--network-arch", "claude", "--model-path", f"claude://{MODEL}")
    run_script("start_service", *start, "--service-type", "ClusterIP", "--env", "ANTHROPIC_BASE_URL", timeout=300)
    try:
        sent = run_script("send_request", "--prompt", "Hello there", "--accept-defaults").document
        assert "Hello there" in sent["content"]
        assert sent["usage"]["completion_tokens"] > 0
    finally:
        run_script("stop_service", "--all", expect=None)
    assert cluster.namespace.left() == {}

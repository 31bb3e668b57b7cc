"""A cluster with a bad day: a fault-injecting proxy stands in front of the real API server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import kubernetes_forward as forward
import psutil
import pytest
import requests
import yaml
from doubles.fault_proxy import Fault, FaultProxy
from kubernetes_engine import Namespace, entry_of, kubeconfig, launch_spec, running, silent, written
from support import eventually, need_engine

from inference_service import platforms
from inference_service.contracts import Driver, ServiceEntry, State
from inference_service.errors import BadInput, ToolError

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


@pytest.fixture
def proxy(namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultProxy]:
    document = yaml.safe_load(kubeconfig().read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    files = (cluster.get("certificate-authority"), user.get("client-certificate"), user.get("client-key"))
    need_engine("kubernetes", all(files), f"{kubeconfig()} has no certificate files")
    with FaultProxy(cluster["server"], files) as made:
        file = written(tmp_path / "through-proxy", namespace.name, server=made.url, user={})
        monkeypatch.setenv("KUBECONFIG", str(file))
        yield made


@pytest.fixture
def driver(proxy: FaultProxy) -> Driver:
    return platforms.load("kubernetes")


def answers(entry: ServiceEntry) -> bool:
    try:
        return requests.get(entry.host_url, timeout=5).ok
    except requests.RequestException:
        return False


def test_too_many_requests_are_sent_again_when_the_api_server_says(driver: Driver, proxy: FaultProxy) -> None:
    for path in ("/jobs$", "/services$"):
        proxy.add(Fault("POST", path, "429", times=2))
    began = time.monotonic()
    entry = entry_of(driver.start(launch_spec(), silent))
    assert time.monotonic() - began > 4
    assert proxy.count("POST", "/jobs$") == 3
    eventually(lambda: answers(entry), timeout=60)
    driver.stop(entry)


def test_internal_errors_pass_by(driver: Driver, proxy: FaultProxy, namespace: Namespace) -> None:
    for method, path in (("POST", "/jobs$"), ("POST", "/services$"), ("PATCH", "/jobs/"), ("DELETE", "/jobs/")):
        proxy.add(Fault(method, path, "500", times=2))
    entry = entry_of(driver.start(launch_spec(), silent))
    eventually(lambda: answers(entry), timeout=60)
    driver.stop(entry)
    assert namespace.left() == {}


@pytest.mark.parametrize("path", ["/jobs$", "/secrets$", "/services$"])
def test_a_create_whose_answer_was_lost_is_not_done_twice_and_not_taken_for_a_strangers(
    driver: Driver, proxy: FaultProxy, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    lost = proxy.add(Fault("POST", path, "lost"))
    entry = entry_of(driver.start(launch_spec(secret_env=("HF_TOKEN",)), silent))
    assert lost.hits == 1
    eventually(lambda: answers(entry), timeout=60)
    owner = namespace.one("jobs")["metadata"]["uid"]
    for kind in ("secrets", "services"):
        assert namespace.one(kind)["metadata"]["ownerReferences"][0]["uid"] == owner
    driver.stop(entry)
    assert namespace.left() == {}


def test_a_service_that_exists_is_neither_taken_for_ones_own_nor_removed_by_a_second_start(
    driver: Driver, namespace: Namespace
) -> None:
    spec = launch_spec()
    entry = entry_of(driver.start(spec, silent))
    running(driver, entry)
    with pytest.raises(BadInput) as refused:
        driver.start(spec, silent)
    assert refused.value.type == "job_id_taken"
    assert driver.status(entry).state is State.RUNNING
    assert set(namespace.left()) == {"jobs", "pods", "services"}
    driver.stop(entry)


def test_a_stop_whose_answer_was_lost_succeeds(driver: Driver, proxy: FaultProxy, namespace: Namespace) -> None:
    entry = entry_of(driver.start(launch_spec(), silent))
    for path in ("/jobs/", "/services/"):
        proxy.add(Fault("DELETE", path, "lost"))
    driver.stop(entry)
    assert namespace.left() == {}


@pytest.mark.parametrize(("method", "path"), [("POST", "/secrets$"), ("POST", "/services$"), ("PATCH", "/jobs/")])
def test_a_start_that_fails_half_way_leaves_nothing(
    driver: Driver, proxy: FaultProxy, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    import kubernetes_cluster

    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    monkeypatch.setattr(kubernetes_cluster, "_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(kubernetes_cluster.Cluster.try_ask, "__kwdefaults__", {"patience": 1.0})
    monkeypatch.setattr(kubernetes_cluster.Cluster.ask, "__kwdefaults__", {"patience": 1.0})
    proxy.add(Fault(method, path, "500", times=99))
    spec = launch_spec(secret_env=("HF_TOKEN",))
    with pytest.raises(ToolError) as failed:
        driver.start(spec, silent)
    assert "etcdserver: leader changed" in failed.value.message
    assert namespace.left() == {}
    assert forward.running(spec.job_id) == []


def test_a_watch_that_is_too_old_or_drops_does_not_cost_the_port_forward(
    driver: Driver, proxy: FaultProxy, namespace: Namespace
) -> None:
    gone = proxy.add(Fault("GET", r"/jobs\?.*watch=true", "gone", times=2))
    dropped = proxy.add(Fault("GET", r"/jobs\?.*watch=true", "dropped", times=1))
    entry = entry_of(driver.start(launch_spec(), silent))
    eventually(lambda: gone.hits == 2 and dropped.hits == 1, timeout=30)
    eventually(lambda: answers(entry), timeout=60)
    assert psutil.pid_exists(entry.extras["port_forward"]["pid"])
    eventually(lambda: proxy.count("GET", r"/jobs\?.*watch=true") >= 4, timeout=40)
    delete = namespace.cluster.batch.delete_namespaced_job
    namespace.cluster.ask(delete, entry.platform_job_id, namespace.name, body={"propagationPolicy": "Foreground"})
    eventually(lambda: not forward.running(entry.job_id), timeout=30)


def test_a_cluster_that_cannot_be_asked_says_nothing_of_the_service(
    driver: Driver, proxy: FaultProxy, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = entry_of(driver.start(launch_spec(), silent))
    written(tmp_path / "through-proxy", namespace.name, server="http://127.0.0.1:9", user={})
    fresh = type(driver)()
    began = time.monotonic()
    status = fresh.status(entry)
    assert status.state is State.UNKNOWN
    assert "127.0.0.1:9" in status.reason
    assert time.monotonic() - began < 5
    with pytest.raises(ToolError) as refused:
        fresh.stop(entry)
    assert refused.value.type == "kubernetes_unreachable"
    with pytest.raises(ToolError):
        fresh.discover()
    checks = fresh.preflight()
    assert not checks[-1].ok
    driver.stop(entry)

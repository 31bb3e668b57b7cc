"""Real engines for a test, from which everything that the test started is removed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from docker_engine import Engine, need_docker
from kubernetes_engine import Namespace, own_namespace
from slurm_cluster import SlurmCluster
from support import eventually, need_engine, run_script

from inference_service import platforms
from inference_service.contracts import Driver


@pytest.fixture
def engine(own_state: None) -> Iterator[Engine]:
    engine = Engine(need_docker())
    yield engine
    for name in engine.ours():
        engine.api.remove_container(name, force=True, v=True)


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    """The name of a network that does not exist yet; it is removed with the containers on it."""
    name = f"tao_test_{uuid.uuid4().hex[:8]}"
    yield name
    for name_on_it in engine.ours():
        engine.api.remove_container(name_on_it, force=True)
    for found in engine.api.networks(names=[name]):
        engine.api.remove_network(found["Id"])


@pytest.fixture(scope="session")
def running_slurm() -> Iterator[SlurmCluster]:
    why_not = slurm_cluster.why_not()
    need_engine("slurm", not why_not, why_not)
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def slurm(own_state: None, running_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster that the environment names. What a test leaves of its services is stopped; nothing may be left then."""
    for name, value in running_slurm.environ.items():
        monkeypatch.setenv(name, value)
    yield running_slurm
    for name, value in running_slurm.environ.items():
        monkeypatch.setenv(name, value)
    run_script("registry", "reconcile", expect=None)
    run_script("stop_service", "--all", expect=None)
    running_slurm.mend()
    # The last shell of a connection that has ended may still be ending there.
    for what in (running_slurm.jobs, running_slurm.left, running_slurm.tunnels):
        eventually(lambda what=what: not what(), timeout=10)  # type: ignore[misc]


@pytest.fixture
def namespace(own_state: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A Kubernetes namespace of the test's own, which its kubeconfig names."""
    import kubernetes_forward

    with own_namespace(tmp_path) as made:
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
        yield made
        for job in made.get("jobs"):
            kubernetes_forward.end_all(job["metadata"]["labels"]["tao-job-id"], None)


@pytest.fixture
def kubernetes(namespace: Namespace) -> Driver:
    """The driver of that platform."""
    return platforms.load("kubernetes")

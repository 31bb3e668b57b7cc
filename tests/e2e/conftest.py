"""Real engines for a test, from which everything that the test started is removed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import Engine, need_docker
from kubernetes_engine import Namespace, own_namespace

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

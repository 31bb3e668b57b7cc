"""Images that need a pull secret, on a real cluster and from a real registry with a password."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles import private_registry
from kubernetes_engine import LOCAL_STATE, Namespace, entry_of, is_local, launch_spec, running, silent, told
from support import need_engine

from inference_service import platforms
from inference_service.contracts import Driver, State

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.xdist_group("private-registry")]

WAIT = "umask 0 && exec sleep 600"


@pytest.fixture
def driver(namespace: Namespace, tmp_path: Path) -> Iterator[Driver]:
    need_engine("kubernetes-local", is_local(), "the cluster's node does not reach a registry on this machine")
    need_engine("kubernetes-local", not private_registry.obstacle(), private_registry.obstacle())
    with private_registry.private_registry(tmp_path):
        yield platforms.load("kubernetes")


def test_an_image_that_needs_a_secret_fails_at_once_without_and_runs_with_it(
    driver: Driver, namespace: Namespace
) -> None:
    entry = entry_of(driver.start(launch_spec(image=private_registry.IMAGE, command=WAIT), silent))
    status = told(driver, entry, "--image-pull-secret")
    assert status.state is State.FAILED
    assert "ErrImagePull" in status.reason
    driver.stop(entry)

    auth = base64.b64encode(f"{private_registry.USERS[0]}:{private_registry.PASSWORD}".encode()).decode()
    config = json.dumps({"auths": {private_registry.ADDRESS: {"auth": auth}}})
    secret = {
        "metadata": {"name": "mine"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    }
    namespace.cluster.ask(namespace.cluster.core.create_namespaced_secret, namespace.name, secret)
    options = {"service-type": "ClusterIP", "image-pull-secret": "mine"}
    spec = launch_spec(image=private_registry.IMAGE, command=WAIT, platform_options=options)
    entry = entry_of(driver.start(spec, silent))
    running(driver, entry)
    driver.stop(entry)
    # Somebody else's Secret is not ours to remove.
    read = namespace.cluster.core.read_namespaced_secret
    assert namespace.cluster.ask_or_none(read, "mine", namespace.name) is not None


@pytest.fixture
def ngc_is_private_registry() -> Iterator[None]:
    """The cluster's containerd goes to the private registry for what it knows as nvcr.io."""
    folder = LOCAL_STATE / "registries" / "nvcr.io"
    folder.mkdir()
    url = f"http://{private_registry.ADDRESS}"
    (folder / "hosts.toml").write_text(f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n')
    yield
    (folder / "hosts.toml").unlink()
    folder.rmdir()


def test_a_pull_secret_is_made_from_the_ngc_key_and_goes_with_the_service(
    driver: Driver, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, ngc_is_private_registry: None
) -> None:
    monkeypatch.setenv("NGC_KEY", private_registry.PASSWORD)
    options = {"service-type": "ClusterIP", "create-image-pull-secret": True}
    image = f"nvcr.io/{private_registry.REPOSITORY}:{private_registry.TAG}"
    entry = entry_of(driver.start(launch_spec(image=image, command=WAIT, platform_options=options), silent))
    running(driver, entry)
    made = namespace.one("secrets")
    assert made["type"] == "kubernetes.io/dockerconfigjson"
    assert private_registry.PASSWORD not in json.dumps([namespace.get("jobs"), namespace.get("pods")])
    driver.stop(entry)
    assert namespace.left() == {}

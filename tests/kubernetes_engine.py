"""What tests of the kubernetes driver share: a namespace of their own on a real cluster, specs, entries, accounts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import yaml
from support import eventually, need_engine

from inference_service.contracts import (
    Driver,
    LaunchSpec,
    PlatformStatus,
    Progress,
    ServiceEntry,
    StartedService,
    State,
)

LOCAL_STATE = Path("/var/lib/e2e-kubernetes")
"""Where the cluster that runs on this very machine keeps its state: its node sees this machine's files."""

IMAGE = os.environ.get("TAO_E2E_IMAGE", "tao-inference-service/smollm2:0.1.0")
"""The smollm2 image as the cluster knows it; it has bash and python3."""

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
SERVE = "umask 0 && exec python3 -u -m http.server 8080"
GPU = "nvidia.com/gpu"


def kubeconfig() -> Path:
    """The administrator's kubeconfig of the cluster to test on."""
    return Path(os.environ.get("TAO_E2E_KUBECONFIG") or LOCAL_STATE / "admin.kubeconfig")


def is_local() -> bool:
    """Whether the cluster's node is this machine."""
    return kubeconfig().is_relative_to(LOCAL_STATE)


@dataclasses.dataclass
class Namespace:
    """A namespace of a test's own. `kubeconfig` names it as its context's; `cluster` asks as an administrator."""

    name: str
    kubeconfig: Path
    cluster: Any

    def get(self, kind: str) -> list[dict[str, Any]]:
        """The objects of a kind (jobs, pods, services, secrets …) in the namespace that are of our services."""
        call = {
            "jobs": lambda: self.cluster.batch.list_namespaced_job,
            "pods": lambda: self.cluster.core.list_namespaced_pod,
            "services": lambda: self.cluster.core.list_namespaced_service,
            "secrets": lambda: self.cluster.core.list_namespaced_secret,
        }[kind]()
        items: list[dict[str, Any]] = self.cluster.ask(call, self.name, label_selector="tao-job-id")["items"]
        return items

    def left(self) -> dict[str, list[str]]:
        """The names of everything of ours that is there."""
        kinds = ("jobs", "pods", "services", "secrets")
        found = {kind: [item["metadata"]["name"] for item in self.get(kind)] for kind in kinds}
        return {kind: names for kind, names in found.items() if names}

    def one(self, kind: str) -> dict[str, Any]:
        """The only object of ours of that kind, once it is there."""

        def only() -> dict[str, Any] | None:
            items = self.get(kind)
            assert len(items) < 2, [item["metadata"]["name"] for item in items]
            return items[0] if items else None

        return eventually(only, timeout=30)

    def quota(self, **hard: str) -> None:
        """Set a ResourceQuota, and wait until the cluster has counted what is there."""
        body = {"metadata": {"name": "limit"}, "spec": {"hard": hard}}
        self.cluster.ask(self.cluster.core.create_namespaced_resource_quota, self.name, body)
        read = self.cluster.core.read_namespaced_resource_quota
        eventually(lambda: (self.cluster.ask(read, "limit", self.name).get("status") or {}).get("hard"), timeout=30)

    def give_address(self, service: str, ingress: Mapping[str, str]) -> None:
        """The load balancer's part: an address or a host name."""
        body = {"status": {"loadBalancer": {"ingress": [dict(ingress)]}}}
        self.cluster.ask(self.cluster.core.patch_namespaced_service_status, service, self.name, body)


@contextlib.contextmanager
def own_namespace(folder: Path) -> Iterator[Namespace]:
    """A new namespace, and a kubeconfig in `folder` whose context it is; both go at the end."""
    cluster = _administrator()
    name = f"test-{uuid.uuid4().hex[:12]}"
    cluster.ask(cluster.core.create_namespace, {"metadata": {"name": name}})
    read = cluster.core.read_namespaced_service_account
    eventually(lambda: cluster.ask_or_none(read, "default", name), timeout=30)
    try:
        yield Namespace(name, written(folder / "kubeconfig", name), cluster)
    finally:
        cluster.ask_or_none(cluster.core.delete_namespace, name)


def written(file: Path, namespace: str, server: str | None = None, user: Mapping[str, Any] | None = None) -> Path:
    """The cluster's kubeconfig with another namespace, and where given another server or another user."""
    document = yaml.safe_load(kubeconfig().read_text())
    contexts = {item["name"]: item["context"] for item in document["contexts"]}
    context = {**contexts[document["current-context"]], "namespace": namespace}
    clusters = {item["name"]: item["cluster"] for item in document["clusters"]}
    users = {item["name"]: item["user"] for item in document["users"]}
    made = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "clusters": [{"name": "test", "cluster": {"server": server} if server else clusters[context["cluster"]]}],
        "users": [{"name": "test", "user": dict(user) if user is not None else users[context["user"]]}],
    }
    file.write_text(yaml.safe_dump(made))
    file.chmod(0o600)
    return file


def account(namespace: Namespace, file: Path, rules: list[dict[str, Any]]) -> Path:
    """A service account with these rights alone; the kubeconfig by which it is used."""
    cluster, name = namespace.cluster, f"account-{uuid.uuid4().hex[:6]}"
    core = cluster.core
    cluster.ask(core.create_namespaced_service_account, namespace.name, {"metadata": {"name": name}})
    bind(namespace, name, rules)
    request = {"spec": {"expirationSeconds": 3600, "audiences": []}}
    create = core.create_namespaced_service_account_token
    token = cluster.ask(create, name, namespace.name, request)["status"]["token"]
    return written(file, namespace.name, user={"token": token})


def bind(namespace: Namespace, account_name: str, rules: list[dict[str, Any]]) -> None:
    """Give a service account of the namespace these rights in it."""
    import kubernetes.client

    api: Any = kubernetes.client.RbacAuthorizationV1Api(namespace.cluster.api_client)
    role = {"metadata": {"name": account_name}, "rules": rules}
    namespace.cluster.ask(api.create_namespaced_role, namespace.name, role)
    binding = {
        "metadata": {"name": account_name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account_name},
        "subjects": [{"kind": "ServiceAccount", "name": account_name, "namespace": namespace.name}],
    }
    namespace.cluster.ask(api.create_namespaced_role_binding, namespace.name, binding)


def needed_rights() -> list[dict[str, Any]]:
    """The rules of the Role that the skill asks an administrator for."""
    import kubernetes_preflight

    rules: list[dict[str, Any]] = yaml.safe_load(kubernetes_preflight.ROLE_FILE.read_text())["rules"]
    return rules


def launch_spec(**changes: Any) -> LaunchSpec:
    """A launch spec of a small HTTP server without GPUs behind a forwarded port, with these changes."""
    spec = LaunchSpec(
        job_id=str(uuid.uuid4()),
        network_arch="smollm2",
        platform="kubernetes",
        model_path=MODEL,
        image=IMAGE,
        command=SERVE,
        env={"TAO_API_JOB_ID": "j"},
        secret_env=(),
        num_gpus=0,
        container_port=8080,
        platform_options={"service-type": "ClusterIP"},
    )
    return dataclasses.replace(spec, **changes)


def entry_of(started: StartedService) -> ServiceEntry:
    """The registry entry of a started service."""
    names = [field.name for field in dataclasses.fields(StartedService) if field.name != "started_at"]
    return ServiceEntry(**{name: getattr(started, name) for name in names})


def silent(_progress: Progress) -> None:
    """A report that nobody reads."""


def _administrator() -> Any:
    try:
        import kubernetes_cluster

        access = kubernetes_cluster.find(environ={"KUBECONFIG": str(kubeconfig())})
        cluster = kubernetes_cluster.Cluster(access)
        nodes = cluster.ask(cluster.core.list_node)["items"]
    except Exception as error:
        need_engine("kubernetes", False, f"no cluster at {kubeconfig()}: {error}")
        raise
    images = json.dumps([node["status"].get("images") for node in nodes])
    if "TAO_E2E_IMAGE" not in os.environ:
        need_engine("kubernetes", IMAGE in images, f"no node of {kubeconfig()} has the image {IMAGE}")
    return cluster


def need_gpus(namespace: Namespace, at_least: int = 1) -> int:
    """The GPUs that the cluster's largest node advertises; the test is skipped where there are too few."""
    nodes = namespace.cluster.ask(namespace.cluster.core.list_node)["items"]
    most = max(int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes)
    need_engine("kubernetes", most >= at_least, f"no node advertises {at_least} {GPU}")
    return most


def running(driver: Driver, entry: ServiceEntry) -> None:
    eventually(lambda: driver.status(entry).state is State.RUNNING, timeout=60)


def told(driver: Driver, entry: ServiceEntry, words: str) -> PlatformStatus:
    """The status, once its reason has these words."""
    return eventually(lambda: found if words in (found := driver.status(entry)).reason else None, timeout=60)


def answer(entry: ServiceEntry, path: str = "/") -> str:
    def get() -> str | None:
        try:
            response = requests.get(entry.host_url + path, timeout=5)
        except requests.RequestException:
            return None
        return response.text if response.ok else None

    return eventually(get, timeout=60)

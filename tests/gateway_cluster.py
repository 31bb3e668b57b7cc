"""The gateway in a namespace of its own on a real cluster: two replicas, PostgreSQL, a double of Anthropic's API."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from doubles import anthropic_api
from kubernetes_engine import Namespace, own_namespace
from support import SKILL, eventually, need_engine

OVERLAY = SKILL / "tests" / "e2e" / "gateway-kubernetes"
GATEWAY_IMAGE = "tao-inference-service/gateway:0.1.0"
POSTGRESQL_IMAGE = "tao-e2e/postgresql:15"
MODEL = "claude-haiku-4-5-20251001"
_READY_SECONDS = 120


@dataclass
class GatewayCluster:
    """`url` is the gateway's address from outside: connections are dealt out to its replicas."""

    namespace: Namespace
    url: str
    admin_key: str

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """What kubectl prints for a command in this namespace."""
        return self.run_kubectl(*arguments, stdin=stdin, timeout=timeout).stdout

    def run_kubectl(
        self, *arguments: str, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """The same with its warnings, which are in `stderr`."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", self.namespace.kubeconfig, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def callers(self, *arguments: str) -> dict[str, Any]:
        """The document of callers.py, run in one of the replicas."""
        pod = self.pods()[0]
        document: dict[str, Any] = json.loads(self.kubectl("exec", pod, "--", "callers.py", *arguments))
        return document

    def sql(self, statement: str) -> list[str]:
        """The lines that psql prints for a statement."""
        target = ("--host=127.0.0.1", "--username=gateway", "--dbname=gateway")
        command = (
            "sh",
            "-c",
            'PGPASSWORD=$POSTGRES_PASSWORD exec psql "$@"',
            "psql",
            *target,
            "--no-align",
            "--tuples-only",
        )
        return self.kubectl("exec", "deployment/postgresql", "--", *command, "--command", statement).splitlines()

    def pods(self) -> list[str]:
        """The names of the gateway's pods that run and are not ending."""
        found = json.loads(self.kubectl("get", "pods", "-l", "app.kubernetes.io/name=tao-gateway", "-o", "json"))
        return [
            pod["metadata"]["name"]
            for pod in found["items"]
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] == "Running"
        ]

    def restarts(self, pod: str) -> int:
        """How often the cluster has started that pod's container again."""
        path = "jsonpath={.status.containerStatuses[0].restartCount}"
        return int(self.kubectl("get", "pod", pod, "-o", path))

    def configured(self, pod: str) -> str:
        """The registry as that pod has it."""
        return self.kubectl("exec", pod, "--", "cat", "/etc/gateway/services.json")

    def wait(self, deployment: str = "tao-gateway") -> None:
        """Wait until every pod of the deployment is the newest, and ready."""
        self.kubectl(
            *("rollout", "status", f"deployment/{deployment}", f"--timeout={_READY_SECONDS}s"),
            timeout=_READY_SECONDS + 30,
        )

    def get(self, path: str, key: str = "") -> requests.Response:
        """An answer of one of the replicas."""
        return requests.get(self.url + path, headers={"x-api-key": key or self.admin_key}, timeout=10)

    def cluster_address(self, service: str) -> str:
        """The address of a service of the namespace for other pods."""
        return self.kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIP}").strip()


@contextlib.contextmanager
def gateway_cluster(folder: Path) -> Iterator[GatewayCluster]:
    """Deploy it all, and remove it at the end. The test is skipped where no cluster has the images."""
    with own_namespace(folder) as namespace:
        _need_images(namespace)
        made = GatewayCluster(namespace, "", secrets.token_hex(24))
        values = {
            "ANTHROPIC_API_KEY": anthropic_api.KEY,
            "TAO_GATEWAY_ADMIN_KEY": made.admin_key,
            "PGPASSWORD": secrets.token_hex(24),
        }
        made.kubectl("create", "-f", "-", stdin=json.dumps(_object("Secret", "tao-gateway", stringData=values)))
        files = {file.name: file.read_text() for file in Path(anthropic_api.__file__).parent.glob("*.py")}
        made.kubectl("create", "-f", "-", stdin=json.dumps(_object("ConfigMap", "doubles", data=files)))
        # First what the gateway connects to: before a node knows a Service, whoever is behind its way out may answer.
        for neighbour in ("postgresql", "anthropic"):
            made.kubectl("apply", "--filename", str(OVERLAY / f"{neighbour}.yaml"))
        for neighbour in ("postgresql", "anthropic"):
            made.wait(neighbour)
        made.kubectl("apply", "--kustomize", str(OVERLAY))
        made.wait()
        port = made.kubectl("get", "service", "tao-gateway", "-o", "jsonpath={.spec.ports[0].nodePort}")
        made.url = f"http://{_node_address(namespace)}:{port}"
        eventually(_answers(made), timeout=60)
        yield made


def _answers(made: GatewayCluster) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return made.get("/api/v1/health/readiness").status_code == 200
        except requests.RequestException:
            return False

    return answers


def _object(kind: str, name: str, **content: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **content}


def _node_address(namespace: Namespace) -> str:
    nodes = namespace.cluster.ask(namespace.cluster.core.list_node)["items"]
    addresses = {item["type"]: item["address"] for item in nodes[0]["status"]["addresses"]}
    return str(os.environ.get("TAO_E2E_NODE_ADDRESS") or addresses["InternalIP"])


def _need_images(namespace: Namespace) -> None:
    nodes = namespace.cluster.ask(namespace.cluster.core.list_node)["items"]
    there = json.dumps([node["status"].get("images") for node in nodes])
    for image in (GATEWAY_IMAGE, POSTGRESQL_IMAGE):
        need_engine("kubernetes-gateway", image in there, f"no node has the image {image}")

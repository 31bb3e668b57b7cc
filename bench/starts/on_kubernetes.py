"""kubernetes: start_service.py against `kubectl apply` of the same objects, `kubectl wait` and curl at the NodePort."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from starts import frame

_WANTED = ("--platform", "kubernetes", *frame.SMOLLM2, "--service-type", "NodePort")


class Kubernetes:
    """The smollm2 image on the cluster that TAO_E2E_KUBECONFIG names, in a namespace of its own."""

    name, client, unit = "kubernetes", "kubectl + curl", "API requests"

    def __init__(self) -> None:
        self._runs_since: dict[str, float] = {}
        self._seen: list[tuple[str, str]] | None = None
        self._folder = Path()
        self._namespace = ""

    def missing(self) -> str:
        """Whether there are a cluster, kubectl and the client package."""
        if importlib.util.find_spec("kubernetes") is None:
            return "the package kubernetes is not installed"
        import kubernetes_engine as engine

        if shutil.which("kubectl") is None:
            return "no kubectl"
        if not engine.kubeconfig().exists():
            return f"no cluster: {engine.kubeconfig()} is not there (TAO_E2E_KUBECONFIG)"
        asked = [
            "kubectl",
            "--kubeconfig",
            str(engine.kubeconfig()),
            "--request-timeout=5s",
            "get",
            "nodes",
            "--output",
        ]
        done = subprocess.run([*asked, "jsonpath={.items[*].status.images[*].names}"], capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().rpartition("\n")[2]
        there = "TAO_E2E_IMAGE" in os.environ or engine.IMAGE in done.stdout
        return "" if there else f"no node of {engine.kubeconfig()} has the image {engine.IMAGE}"

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """A namespace, and a watch on its pods that notes when each began to run."""
        import kubernetes_engine as engine

        with tempfile.TemporaryDirectory() as folder, engine.own_namespace(Path(folder)) as namespace:
            self._folder, self._namespace = Path(folder), namespace.name
            # The cache is not the user's own, which would keep a folder for each address that was ever asked.
            environ = {
                "KUBECONFIG": str(namespace.kubeconfig),
                "KUBECACHEDIR": f"{folder}/cache",
                "IMAGE_SMOLLM2": engine.IMAGE,
            }
            line = "jsonpath={.metadata.labels.tao-job-id} {.status.phase}{'\\n'}"
            watch = ["kubectl", "get", "pods", "--watch", f"--output={line}"]
            with (
                mock.patch.dict(os.environ, environ),
                subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watching,
            ):
                threading.Thread(target=self._note, args=(watching,), daemon=True).start()
                try:
                    yield
                finally:
                    watching.terminate()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """A proxy before the API server counts; a cluster without certificate files is not counted."""
        import kubernetes_engine as engine
        import yaml
        from doubles.fault_proxy import FaultProxy

        document = yaml.safe_load(engine.kubeconfig().read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        files = (cluster.get("certificate-authority"), user.get("client-certificate"), user.get("client-key"))
        if not all(files):
            yield
            return
        with FaultProxy(cluster["server"], files) as proxy:
            through = engine.written(self._folder / "through-proxy", self._namespace, server=proxy.url, user={})
            with mock.patch.dict(os.environ, {"KUBECONFIG": str(through)}):
                # kubectl asks a server that it has not seen for all its kinds of objects: once, not with each start.
                frame.timed(["kubectl", "api-resources"])
                self._seen = proxy.seen
                yield
            self._seen = None

    def ours(self) -> frame.Start:
        """start_service.py, which returns when the service is ready."""
        before = self._count()
        run = frame.timed(frame.command("start_service", *self._wanted()))
        calls = None if before is None else (self._count() or 0) - before
        job_id = json.loads(run.printed)["job_id"]
        try:
            return run.start(self._runs_since[job_id], calls)
        finally:
            frame.script("stop_service", "--job-id", job_id)

    def by_hand(self) -> frame.Start:
        """Apply, wait for the pod and for it to run, ask for node and port."""
        planned = frame.script("start_service", *self._wanted(), "--dry-run")
        job_id, objects = planned["job_id"], planned["would_create"]
        for item in objects["items"]:
            if item["kind"] == "Job":
                item["spec"]["suspend"] = False
        file = self._folder / "objects.json"
        file.write_text(json.dumps(objects))
        pod = f"pod --selector=tao-job-id={job_id}"
        node = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
        words = f"""set -e
            kubectl apply -f {shlex.quote(str(file))} >/dev/null
            kubectl wait {pod} --for=create --timeout=60s >/dev/null
            kubectl wait {pod} --for=jsonpath='{{.status.phase}}'=Running --timeout=60s >/dev/null
            port=$(kubectl get service tao-{job_id} --output=jsonpath='{{.spec.ports[0].nodePort}}')
            node=$(kubectl get nodes --output=jsonpath="{node}")
            {frame.until_ready("http://$node:$port")}"""
        before = self._count()
        try:
            run = frame.timed(["sh", "-c", words])
            calls = None if before is None else (self._count() or 0) - before
            return run.start(self._runs_since[job_id], calls)
        finally:
            frame.timed(["kubectl", "delete", "--cascade=foreground", "-f", str(file)])

    def _wanted(self) -> tuple[str, ...]:
        # A dry run does not ask the kubeconfig for the namespace.
        return (*_WANTED, "--namespace", self._namespace)

    def _count(self) -> int | None:
        return None if self._seen is None else len(self._seen)

    def _note(self, watching: subprocess.Popen[str]) -> None:
        assert watching.stdout is not None
        for line in watching.stdout:
            job_id, _, phase = line.strip().partition(" ")
            if phase == "Running":
                self._runs_since.setdefault(job_id, time.time())

#!/usr/bin/env python3
"""A forwarded port of ours on Kubernetes against `kubectl port-forward`, on the same cluster.

Bytes per second of one large answer and the time that a new connection takes, in turns; medians. Without a cluster
(TAO_E2E_KUBECONFIG) that has the smollm2 image, and kubectl, there is nothing to measure.

    python bench/kubernetes_port_forward.py            about 15 s
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SKILL / "scripts"), str(SKILL / "tests"), str(SKILL / "platform" / "kubernetes")]

import kubernetes_engine as engine  # noqa: E402
import requests  # noqa: E402

from inference_service import platforms  # noqa: E402
from inference_service.contracts import Driver  # noqa: E402

ROUNDS = 5
ANSWER_BYTES = 100_000_000
SERVE = f"umask 0 && cd /tmp && head -c {ANSWER_BYTES} /dev/zero >answer && exec python3 -m http.server 8080"


def main() -> None:
    """Print the figures, and the same as one JSON line at the end."""
    if not engine.kubeconfig().exists() or shutil.which("kubectl") is None:
        print("no cluster to measure on (TAO_E2E_KUBECONFIG), or no kubectl")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TAO_INF_MS_STATE_FILE"] = f"{folder}/registry.json"
        with engine.own_namespace(Path(folder)) as namespace:
            os.environ["KUBECONFIG"] = str(namespace.kubeconfig)
            driver = platforms.load("kubernetes")
            ports = ports_measured(driver)
    print("forwarded port        kubectl     ours")
    for what, unit in (("bytes_per_second", 1e6), ("new_connection_seconds", 1e-3)):
        theirs, ours = ports["kubectl"][what] / unit, ports["ours"][what] / unit
        name = "MB/s" if what == "bytes_per_second" else "ms per new connection"
        print(f"  {theirs:17.1f} {ours:10.1f}   {name}   {ours / theirs:.2f} x kubectl")
    print("\n" + json.dumps({"forwarded_port": ports}))


def ports_measured(driver: Driver) -> dict[str, dict[str, float]]:
    """Bytes per second and seconds per new connection through either forwarded port."""
    entry = engine.entry_of(driver.start(engine.launch_spec(command=SERVE), engine.silent))
    engine.answer(entry)
    command = ["kubectl", "port-forward", f"job/{entry.platform_job_id}", ":8080"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as forward:
        assert forward.stdout is not None
        port = forward.stdout.readline().split(" -> ")[0].rsplit(":", 1)[1]
        urls = {"kubectl": f"http://127.0.0.1:{port}", "ours": entry.host_url}
        found = {name: port_measured(url) for name, url in urls.items()}
        forward.terminate()
    driver.stop(entry)
    return found


def port_measured(url: str) -> dict[str, float]:
    """The medians for one forwarded port."""

    def fetch() -> None:
        with requests.get(f"{url}/answer", stream=True, timeout=60) as response:
            for _ in response.iter_content(1 << 20):
                pass

    taken = statistics.median(seconds(fetch) for _ in range(ROUNDS))
    new = statistics.median(seconds(lambda: requests.head(f"{url}/answer", timeout=60)) for _ in range(8 * ROUNDS))
    return {"bytes_per_second": ANSWER_BYTES / taken, "new_connection_seconds": new}


def seconds(what: Callable[[], object]) -> float:
    """How long that takes."""
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

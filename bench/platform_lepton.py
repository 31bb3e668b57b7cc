#!/usr/bin/env python3
"""lepton: what a start costs beyond Lepton itself, and how soon "ready" is reported, against the plain client.

Both talk to the double of Lepton's API (tests/doubles), which answers at once: what is left is our own time and that of
the client. The baseline does with `leptonai` alone what has to be done: a secret, the endpoint, its token, its address;
then it asks every second whether the endpoint is ready and the model loaded, as a script by hand would.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SKILL / "scripts"))
sys.path.insert(0, str(SKILL / "tests"))
from doubles.lepton_api import LeptonApi  # noqa: E402

BY_HAND = """
import sys, time, requests
from leptonai.api.v2.client import APIClient
from leptonai.api.v2.types.deployment import LeptonDeployment
from leptonai.api.v2.types.secret import SecretItem
client = APIClient()
client.secret.create([SecretItem(name="BENCH_HF_TOKEN", value="x")])
env = {"name": "HF_TOKEN", "value_from": {"secret_name_ref": "BENCH_HF_TOKEN"}}
spec = {"container": {"image": "i", "command": ["bash", "-c", "x"], "ports": [{"container_port": 8080}]}, "envs": [env],
        "resource_requirement": {"resource_shape": "gpu.1xh100-sxm", "min_replicas": 1, "max_replicas": 1}}
made = client.deployment.create_with_response(LeptonDeployment(metadata={"id": "bench", "name": "bench"}, spec=spec))
token = made.spec.api_tokens[0].value
url = client.deployment.get("bench").status.endpoint.external_endpoint
if sys.argv[1] == "wait":
    ready = lambda: requests.get(url + "/api/v1/health/readiness", headers={"Authorization": f"Bearer {token}"})
    while client.deployment.get("bench").status.state.value != "Ready" or ready().status_code != 200:
        time.sleep(1)
"""
OURS = [
    "--platform",
    "lepton",
    "--network-arch",
    "cosmos-rl",
    "--model-path",
    "hf_model://org/model",
    "--num-gpus",
    "1",
]


def run(command: list[str], load_seconds: float) -> tuple[float, int, float]:
    """Seconds of the command, its API calls, and seconds from the model being ready until it ended."""
    with tempfile.TemporaryDirectory() as folder, LeptonApi(load_seconds=load_seconds) as lepton:
        kept = {"TAO_INF_MS_STATE_FILE": f"{folder}/registry.json", "XDG_STATE_HOME": folder}
        environ = {**os.environ, **lepton.environment, **kept, "LEPTON_CACHE_DIR": folder, "HF_TOKEN": "hf_bench_value"}
        begun = time.perf_counter()
        subprocess.run(command, env=environ, check=True, capture_output=True)
        ended = time.monotonic()
        return time.perf_counter() - begun, len(lepton.calls), ended - lepton.only().server.ready_at


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3, help="runs of each command (default 3)")
    options.add_argument("--load-seconds", type=float, default=3.3, help="how long the model loads (default 3.3)")
    given = options.parse_args()
    if importlib.util.find_spec("leptonai") is None:
        sys.exit('pip install "leptonai>=0.47": the baseline is that client')
    start = [sys.executable, str(SKILL / "scripts" / "start_service.py"), *OURS]
    by_hand = [sys.executable, "-c", BY_HAND]
    for what, load, ours, theirs in (
        ("start, not waited for", 0.0, [*start, "--no-wait"], [*by_hand, "start"]),
        ("start until ready", given.load_seconds, start, [*by_hand, "wait"]),
    ):
        our = min(run(ours, load) for _ in range(given.rounds))
        their = min(run(theirs, load) for _ in range(given.rounds))
        calls = f"API calls: ours {our[1]}, by hand {their[1]}"
        print(f"{what:<24} ours {our[0]:6.2f} s   by hand {their[0]:6.2f} s   ratio {our[0] / their[0]:.2f}   {calls}")
        if load:
            print(f"{'ready until reported':<24} ours {our[2]:6.2f} s   by hand {their[2]:6.2f} s")


if __name__ == "__main__":
    main()

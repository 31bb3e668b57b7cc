"""lepton: start_service.py against a script with the `leptonai` client, both on the double of Lepton's API.

The double answers at once, runs the container after half a second and has loaded the model two seconds later: the rest
is our own time and that of the client. By hand is what has to be done: a secret, the endpoint, its token, its address;
then twice a second whether the endpoint is ready, and ten times a second whether the model is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from doubles.lepton_api import LeptonApi
from starts import frame

_STARTING_SECONDS, _LOAD_SECONDS = 0.5, 2.0
_WANTED = (
    *("--platform", "lepton", "--network-arch", "cosmos-rl"),
    *("--model-path", "hf_model://org/model", "--num-gpus", "1"),
)
_BY_HAND = f"""
import time, requests
from leptonai.api.v2.client import APIClient
from leptonai.api.v2.types.deployment import LeptonDeployment
from leptonai.api.v2.types.secret import SecretItem
client = APIClient()
client.secret.create([SecretItem(name="BENCH_HF_TOKEN", value="x")])
env = {{"name": "HF_TOKEN", "value_from": {{"secret_name_ref": "BENCH_HF_TOKEN"}}}}
container = {{"image": "i", "command": ["bash", "-c", "x"], "ports": [{{"container_port": 8080}}]}}
shape = {{"resource_shape": "gpu.1xh100-sxm", "min_replicas": 1, "max_replicas": 1}}
spec = {{"container": container, "envs": [env], "resource_requirement": shape}}
made = client.deployment.create_with_response(LeptonDeployment(metadata={{"id": "bench", "name": "bench"}}, spec=spec))
token = made.spec.api_tokens[0].value
while (status := client.deployment.get("bench").status).state.value != "Ready":
    time.sleep(0.5)
url, headers = status.endpoint.external_endpoint + "{frame.READINESS}", {{"Authorization": f"Bearer {{token}}"}}
while requests.get(url, headers=headers).status_code != 200:
    time.sleep(0.1)
"""


class Lepton:
    """An endpoint in a new workspace of the double for each start."""

    name, client, unit = "lepton (double)", "leptonai + requests", "API requests"

    def missing(self) -> str:
        """Whether the client is there."""
        return "" if importlib.util.find_spec("leptonai") else "the package leptonai is not installed"

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Each start opens its own."""
        yield

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """They are always counted."""
        yield

    def ours(self) -> frame.Start:
        """start_service.py, which returns when the service is ready."""
        return _start(frame.command("start_service", *_WANTED))

    def by_hand(self) -> frame.Start:
        """The script above."""
        return _start([sys.executable, "-c", _BY_HAND])


def _start(command: Sequence[str]) -> frame.Start:
    with (
        tempfile.TemporaryDirectory() as folder,
        LeptonApi(starting_seconds=_STARTING_SECONDS, load_seconds=_LOAD_SECONDS) as lepton,
    ):
        kept = {"TAO_INF_MS_STATE_FILE": f"{folder}/registry.json", "XDG_STATE_HOME": folder}
        secrets = {"LEPTON_CACHE_DIR": folder, "HF_TOKEN": "hf_bench_value"}
        run = frame.timed(command, {**os.environ, **lepton.environment, **kept, **secrets})
        running = lepton.only().created + _STARTING_SECONDS - time.monotonic() + time.time()
        return run.start(running, len(lepton.calls))

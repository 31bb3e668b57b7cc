"""What every bench of the gateway needs: a state folder of its own, a priced route to an upstream, a limited caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent.parent
SCRIPTS = SKILL / "scripts"
sys.path[:0] = [str(SCRIPTS)]

from inference_service.contracts import ServiceEntry  # noqa: E402
from inference_service.registry import Registry  # noqa: E402

MODEL = "mock"

# High enough that none is ever reached, so that each request is counted against all four and none is refused.
LIMITS = (
    *("--requests-per-minute", "1000000000"),
    *("--tokens-per-minute", "1000000000000"),
    *("--usd-per-day", "1000000"),
    *("--usd-per-month", "1000000"),
)
_PRICES = """\
gpu_hour_prices:
  - {platform: local-process, usd_per_gpu_hour: "1.50", effective_from: 2026-01-01, source: made up for a benchmark}
"""


@dataclass(frozen=True)
class Prepared:
    """`environ` is what a gateway runs with, `key` its caller's."""

    folder: Path
    environ: Mapping[str, str]
    key: str

    @property
    def database(self) -> Path:
        """The request log's file."""
        return Path(self.environ["TAO_INF_REQUEST_LOG"])


def prepare(folder: Path, upstream_url: str) -> Prepared:
    """State in `folder`: MODEL is a service at that address whose GPU has a price; one caller has every limit."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TAO_", "ANTHROPIC_", "OTEL_"))},
        "TAO_INF_MS_STATE_FILE": str(folder / "registry.json"),
        "TAO_INF_REQUEST_LOG": str(folder / "requests.db"),
        "TAO_INF_PRICING": str(folder / "pricing.yaml"),
        "XDG_STATE_HOME": str(folder),
    }
    (folder / "pricing.yaml").write_text(_PRICES)
    Registry(folder / "registry.json").write(
        ServiceEntry(
            job_id=MODEL,
            network_arch="smollm2",
            platform="local-process",
            host_url=upstream_url,
            num_gpus=1,
            started_at="2026-01-01T00:00:00+00:00",
        )
    )
    made = subprocess.run(
        [sys.executable, str(SCRIPTS / "callers.py"), "add", "bench", *LIMITS],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return Prepared(folder, environ, str(json.loads(made.stdout)["api_key"]))


def command(port: int) -> list[str]:
    """What serves on that port, with logging, limits and prices on, as a user would run it."""
    return [sys.executable, str(SCRIPTS / "serve_gateway.py"), "--port", str(port)]

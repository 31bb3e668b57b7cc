"""What the gateway adds to a request, against nginx as a plain reverse proxy and LiteLLM's proxy, in one run.

The harness lies beside this repository (or where GATEWAY_PEERS says): it starts a mock upstream, the peers and this
gateway, pins the gateway to core 0 and everything else to core 1, and loads them in turn with wrk. Key, limits,
budgets, prices and the log are on. Needs wrk, nginx and PostgreSQL; the first run installs LiteLLM.

    python bench/gateway/peers.py                          about 25 min
    python bench/gateway/peers.py --targets nginx --rounds 2 --seconds 4
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prepared import MODEL, SKILL, command, prepare

HARNESS = Path(os.environ.get("GATEWAY_PEERS") or SKILL.parent / "shared" / "tools" / "gateway_peers" / "run.py")
MOCK_PORT, PORT = 18080, 18099
CELLS = ("c1", "c32", "stream_c1", "stream_c32")


def main() -> int:
    """Run the harness; the ratios are printed at the end, and once more as one JSON line."""
    if not HARNESS.is_file():
        print(f"there is no harness at {HARNESS}: name one in GATEWAY_PEERS", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        folder = Path(name)
        prepared = prepare(folder, f"http://127.0.0.1:{MOCK_PORT}")
        results = folder / "results.json"
        target = f"ours=http://127.0.0.1:{PORT},{prepared.key}={shlex.join(command(PORT))}"
        arguments = ["--start", target, "--model", MODEL, "--out", str(results), *sys.argv[1:]]
        done = subprocess.run([sys.executable, str(HARNESS), *arguments], env=dict(prepared.environ))
        if done.returncode or not results.exists():
            return done.returncode or 1
        report(json.loads(results.read_text())["targets"])
    return 0


def report(targets: dict[str, Any]) -> None:
    """The medians of ours beside each peer's, and the ratios."""
    medians = {
        name: {cell: values["median"] for cell, values in target["cells"].items()} for name, target in targets.items()
    }
    lines = []
    for cell in CELLS:
        ours = medians["ours"].get(cell)
        if ours is None:
            continue
        print(
            f"\n{cell}: p50 {ours['p50_ms']} ms, p99 {ours['p99_ms']} ms, {ours['rps']:,.0f} requests/s,"
            f" {ours['cpu_s_per_1000']} CPU-s per 1,000"
        )
        for peer in ("nginx", "litellm", "litellm_nodb"):
            theirs = medians.get(peer, {}).get(cell)
            if theirs is None:
                continue
            ratios = {
                "requests_per_second": ours["rps"] / theirs["rps"],
                "cpu": ours["cpu_s_per_1000"] / theirs["cpu_s_per_1000"],
            }
            if "added_p50_ms" in ours and theirs.get("added_p50_ms"):
                ratios["added_p50"] = ours["added_p50_ms"] / theirs["added_p50_ms"]
            print(f"  against {peer:<13}" + "  ".join(f"{name} x{ratio:.4g}" for name, ratio in ratios.items()))
            lines.append({"cell": cell, "peer": peer, **{name: round(ratio, 5) for name, ratio in ratios.items()}})
    info = {key: targets["ours"].get(key) for key in ("cold_start_s", "rss_start_mb", "rss_end_mb")}
    print("\nours: cold start {cold_start_s} s, {rss_start_mb} MB, {rss_end_mb} MB after the load".format(**info))
    print(json.dumps({"bench": "gateway_peers", "ratios": lines, **info}))


if __name__ == "__main__":
    sys.exit(main())

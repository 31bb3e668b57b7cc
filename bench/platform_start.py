#!/usr/bin/env python3
"""What a start costs beyond what the platform's own client takes: the same service, started both ways in turn.

For each platform, start_service.py against what a person would type: seconds until the platform runs it (by the
platform's own record), from there until ready is reported, CPU seconds of the client's side, and calls to the platform;
medians and ratios. A platform whose engine is not there is skipped with a notice. Brev and Lepton are the doubles that
the tests use. About three minutes.

    python bench/platform_start.py --rounds 5 --platform local-docker,slurm
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SKILL / "scripts"), str(SKILL / "tests"), str(SKILL / "platform" / "kubernetes")]

from starts.frame import Platform, Start  # noqa: E402
from starts.on_brev import Brev  # noqa: E402
from starts.on_kubernetes import Kubernetes  # noqa: E402
from starts.on_lepton import Lepton  # noqa: E402
from starts.on_local_docker import LocalDocker  # noqa: E402
from starts.on_slurm import Slurm  # noqa: E402

PLATFORMS: tuple[Platform, ...] = (LocalDocker(), Kubernetes(), Slurm(), Brev(), Lepton())
OURS = "start_service.py"
FIGURES = ("until it runs", "until ready", "together", "CPU", "calls")


def main() -> None:
    """Print the figures of every platform that is there, and the same as one JSON line at the end."""
    names = {platform.name.split()[0]: platform for platform in PLATFORMS}
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=2, help="starts each way (default 2)")
    options.add_argument("--platform", default=",".join(names), help=f"some of {','.join(names)} (default: all)")
    given = options.parse_args()
    if unknown := set(given.platform.split(",")) - set(names):
        options.error(f"no such platform: {', '.join(sorted(unknown))}")
    print(f"medians of {given.rounds} starts, seconds")
    print(f"{'platform':<16} {'started by':<31}" + "".join(f" {name:>13}" for name in FIGURES))
    summary = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TAO_INF_MS_STATE_FILE": f"{folder}/registry.json", "XDG_STATE_HOME": folder}
        for name in given.platform.split(","):
            platform = names[name]
            if why := platform.missing():
                print(f"{platform.name:<16} skipped: {why}", flush=True)
                continue
            with platform.opened():
                summary[name] = measure(platform, given.rounds)
    print("\n" + json.dumps(summary))


def measure(platform: Platform, rounds: int) -> dict[str, dict[str, float | None]]:
    """Start it both ways in turn, `rounds` times after one of each that is only counted; print and return medians."""
    ways = {OURS: platform.ours, platform.client: platform.by_hand}
    with platform.counted():
        starts = {name: [way()] for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            starts[name].append(way())
    medians = {name: _medians(found) for name, found in starts.items()}
    ours, theirs = medians.values()
    ratios = [mine / their if mine and their else None for mine, their in zip(ours, theirs, strict=True)]
    for name, figures in medians.items():
        print(_row(platform, name, [_shown(figure) for figure in figures]) + f" {platform.unit}")
    print(_row(platform, "ratio", [_shown(ratio, "x") for ratio in ratios]), flush=True)
    rows = {**medians, "ratio": ratios}
    return {name: dict(zip(FIGURES, figures, strict=True)) for name, figures in rows.items()}


def _medians(starts: Sequence[Start]) -> list[float | None]:
    timed, calls = starts[1:], [start.calls for start in starts if start.calls is not None]
    return [
        statistics.median(start.until_running for start in timed),
        statistics.median(start.until_ready for start in timed),
        statistics.median(start.until_running + start.until_ready for start in timed),
        statistics.median(start.cpu for start in timed),
        statistics.median(calls) if calls else None,
    ]


def _row(platform: Platform, name: str, figures: Sequence[str]) -> str:
    return f"{platform.name:<16} {name:<31}" + "".join(f" {figure:>13}" for figure in figures)


def _shown(figure: float | None, unit: str = "") -> str:
    return "not counted" if figure is None else f"{figure:.3g}{unit}"


if __name__ == "__main__":
    main()

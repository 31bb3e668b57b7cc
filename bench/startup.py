#!/usr/bin/env python3
"""Start-up: every script's --help, and listing the registry, against a bare Python that does nothing.

Baselines: this Python running `pass`, and the same importing the packages that a script would import at its top if it
were not careful. Each figure is the best of several runs, which is what a machine with other work to do can repeat.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
CARELESS = "import requests, docker, jsonschema, rich.console, yaml"


def best_seconds(command: Sequence[str], rounds: int, environ: Mapping[str, str] = os.environ) -> float:
    """The shortest of `rounds` runs, in seconds."""
    shortest = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, env=environ, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def show(what: str, seconds: float, bare: float) -> None:
    """One line of the bench."""
    print(f"{what:<34} {seconds * 1000:7.1f} ms   {seconds / bare:5.1f} x bare Python")


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9, help="runs of each command (default 9)")
    rounds = options.parse_args().rounds

    bare = best_seconds([sys.executable, "-c", "pass"], rounds)
    show("baseline: bare Python", bare, bare)
    show("baseline: python with its imports", best_seconds([sys.executable, "-c", CARELESS], rounds), bare)
    for script in sorted(SCRIPTS.glob("*.py")):
        show(f"{script.name} --help", best_seconds([sys.executable, str(script), "--help"], rounds), bare)
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "TAO_INF_MS_STATE_FILE": str(Path(folder, "registry.json"))}
        listing = best_seconds([sys.executable, str(SCRIPTS / "registry.py"), "list"], rounds, environ)
    show("registry.py list", listing, bare)


if __name__ == "__main__":
    main()

"""The double of Brev as tests use it: on PATH, with a state of its own, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import SKILL, need_engine

FOLDER = SKILL / "tests" / "doubles" / "brev"
sys.path.insert(0, str(FOLDER))
import brev_double_state as states  # noqa: E402

IMAGE = os.environ.get("TAO_E2E_IMAGE", "tao-inference-service/smollm2:0.1.0")
MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
LAUNCH = ("--platform", "brev", "--network-arch", "smollm2", "--model-path", MODEL)


class BrevDouble:
    """The double's state, and what can be done to it behind the skill's back."""

    def set(self, **fields: Any) -> None:
        with states.changing() as state:
            state.update(fields)

    def get(self, key: str) -> Any:
        return states.reading()[key]

    def add(self, name: str, **fields: Any) -> dict[str, Any]:
        """An instance that the user has already; `boot` and `sshd` are seconds."""
        with states.changing() as state:
            added: dict[str, Any] = states.new_instance(
                state, name, fields.pop("boot", 0), fields.pop("sshd", 0), **fields
            )
        return added

    def change(self, name: str, **fields: Any) -> None:
        with states.changing() as state:
            state["instances"][name].update(fields)

    def instances(self) -> dict[str, Any]:
        found: dict[str, Any] = states.reading()["instances"]
        return found

    def calls(self, command: str) -> list[list[str]]:
        """The arguments of every call of that brev command."""
        return [call for call in self.get("calls") if call[0] == command]

    def containers(self, name: str | None = None, everything: bool = True) -> list[str]:
        """The names of the containers on an instance, or on all."""
        names = [name] if name else [*self.instances()]
        listed: list[str] = []
        for each in names:
            command = ["docker", "ps", "--format", "{{.Names}}", "--filter", f"label={states.label(each)}"]
            done = subprocess.run([*command, *(["--all"] if everything else [])], capture_output=True, text=True)
            listed += done.stdout.split()
        return listed

    def homes(self) -> list[Path]:
        """Every file that was left on an instance."""
        return [path for home in states.file().parent.glob("home-*") for path in home.rglob("*") if path.is_file()]


@pytest.fixture
def brev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_state: None) -> Iterator[BrevDouble]:
    """Brev, logged in, without instances. Instances come up at once and have no firewall unless told otherwise."""
    monkeypatch.setenv("IMAGE_SMOLLM2", IMAGE)
    with double_in(tmp_path / "brev") as double:
        yield double


@contextlib.contextmanager
def double_in(folder: Path) -> Iterator[BrevDouble]:
    """The double, found on PATH during the block; then its processes and containers are ended."""
    folder.mkdir()
    file = folder / "state.json"
    beginning = {"logged_in": True, "expires": time.time() + 3600, "instances": {}, "calls": [], "boot_seconds": 0.3,
                 "sshd_seconds": 0.3, "firewalled": False, "port_forward_stays": False, "missing_images": [],
                 "refused_pulls": {}}  # fmt: skip
    file.write_text(json.dumps(beginning))
    path = os.environ["PATH"]
    os.environ.update(BREV_DOUBLE_STATE=str(file), PATH=f"{FOLDER}{os.pathsep}{path}")
    try:
        yield BrevDouble()
    finally:
        _end_processes(str(file))
        _remove_containers()
        os.environ["PATH"] = path
        del os.environ["BREV_DOUBLE_STATE"]


def need_smollm2_image() -> None:
    """Skip where this machine's Docker does not have the image."""
    try:
        done = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, text=True)
        need_engine("docker", done.returncode == 0, done.stderr.strip())
    except OSError as error:
        need_engine("docker", False, str(error))


def processes_of(state_file: str) -> list[psutil.Process]:
    """The processes that were started for this double: they have its state in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get("BREV_DOUBLE_STATE") == state_file:
                found.append(process)
    return found


def _end_processes(state_file: str) -> None:
    for process in processes_of(state_file):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _remove_containers() -> None:
    prefix = states.label("").split("=")[1]
    done = subprocess.run(
        ["docker", "ps", "--all", "--format", '{{.ID}} {{.Label "brev-double"}}', "--filter", "label=brev-double"],
        capture_output=True,
        text=True,
    )
    for line in done.stdout.splitlines():
        container, _, mark = line.partition(" ")
        if mark.startswith(prefix):
            subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True)

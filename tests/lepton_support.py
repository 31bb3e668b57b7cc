"""What the tests of lepton share: the double of its API as the workspace in use, and starting a service there."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doubles.lepton_api import LeptonApi
from support import need_engine, run_script

from inference_service import platforms
from inference_service.contracts import Driver, LaunchSpec, Progress

MODEL = "hf_model://nvidia/Cosmos-Reason1-7B"
START = ("--platform", "lepton", "--network-arch", "cosmos-rl", "--model-path", MODEL, "--num-gpus", "1")
ASK = ("--prompt", "what is this?", "--image", "https://example.com/a.png", "--accept-defaults")
BOTH = pytest.mark.parametrize("new_routes", [False, True], ids=["deployments", "endpoints"])


@contextmanager
def workspace(monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> Iterator[LeptonApi]:
    """A workspace that this process's environment, and so every script, uses."""
    there = importlib.util.find_spec("leptonai") is not None
    need_engine("lepton", there, "the package leptonai is not installed")
    from leptonai.api.v2.client import reset_new_deployment_api_flag_cache

    # The client remembers what a workspace can do by its address, and the port may have been another test's.
    reset_new_deployment_api_flag_cache()
    with LeptonApi(**settings) as lepton:
        use(lepton, monkeypatch, folder)
        yield lepton


def use(lepton: LeptonApi, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this workspace be the one in use; the client's own records are in `folder`."""
    monkeypatch.setenv("LEPTON_CACHE_DIR", str(folder / "lepton-cache"))
    for name, value in lepton.environment.items():
        monkeypatch.setenv(name, value)


def start(*options: str, expect: int = 0) -> dict[str, Any]:
    """start_service.py's document."""
    document: dict[str, Any] = run_script("start_service", *START, *options, expect=expect).document
    return document


def spec(**changes: Any) -> LaunchSpec:
    """A launch spec for lepton."""
    job_id = str(uuid.uuid4())
    fields: dict[str, Any] = {
        "job_id": job_id,
        "network_arch": "cosmos-rl",
        "platform": "lepton",
        "model_path": MODEL,
        "image": "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl",
        "command": "umask 0 && serve --job '{}'",
        "env": {"TAO_API_JOB_ID": job_id, "TAO_EXECUTION_BACKEND": "lepton"},
        "secret_env": (),
        "num_gpus": 1,
        "container_port": 8080,
    }
    return LaunchSpec(**{**fields, **changes})


def driver() -> Driver:
    """A driver that knows nothing yet, as a script has it."""
    return platforms.load("lepton")


def silent(_progress: Progress) -> None:
    """A report for nobody."""


def token_files() -> list[Path]:
    """The files with tokens that this test has left."""
    return sorted(Path(os.environ["XDG_STATE_HOME"]).rglob("tokens/*"))

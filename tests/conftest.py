"""Every test has a registry, a request log and a state directory of its own, and none of the user's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from database_fixtures import database, database_url, postgresql  # noqa: F401 - fixtures for every test
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is. CI tries the same examples each time, so that what it finds
# can be found again.
settings.register_profile(
    "ours", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("ours")

_OURS = (
    "TAO_",
    "IMAGE_",
    "SLURM_",
    "SSH_KEY_PATH",
    "LEPTON_",
    "BREV_",
    "NGC_",
    "HF_TOKEN",
    "ANTHROPIC_",
    "WANDB_",
    "CLEARML_",
)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(_OURS) and not name.startswith("TAO_E2E_"):
            monkeypatch.delenv(name)
    state = tmp_path / "state"
    monkeypatch.setenv("TAO_INF_MS_STATE_FILE", str(state / "registry.json"))
    monkeypatch.setenv("TAO_INF_REQUEST_LOG", str(state / "requests.db"))
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    state.mkdir()


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes whose coverage is not measured: coverage imports sqlite3, and writes a file when they end."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)

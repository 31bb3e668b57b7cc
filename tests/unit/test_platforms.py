"""Loading a platform's driver from its folder."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import SCRIPTS

from inference_service import platforms
from inference_service.errors import BadInput

FROM_MANY_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from inference_service import platforms
sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(16) as pool:
    names = [driver.name for driver in pool.map(platforms.load, platforms.names() * 20)]
assert sorted(set(names)) == platforms.names(), names
assert not {"docker", "requests", "psutil", "rich"} & set(sys.modules), "a client library was imported"
"""


def test_drivers_are_loaded_from_many_threads_at_once_without_their_client_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FROM_MANY_THREADS], env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", platforms.names())
def test_every_platform_has_the_whole_driver(name: str) -> None:
    driver = platforms.load(name)
    assert driver.name == name
    for method in ("preflight", "check", "dry_run", "start", "status", "logs", "stop", "discover"):
        assert callable(getattr(driver, method))
    assert all(option.help for option in driver.options)


def test_an_unknown_platform_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput) as refused:
        platforms.load("mainframe")
    assert "local-docker" in refused.value.fix

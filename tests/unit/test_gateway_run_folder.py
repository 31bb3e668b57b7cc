"""Workers' folder: there while the gateway runs, gone afterwards, and gone at the next start where it was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from inference_service.gateway.run_folder import run_folder

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
KILLED = """
import os, signal, sys
from pathlib import Path
from inference_service.gateway.run_folder import run_folder
with run_folder(Path(sys.argv[1])) as folder:
    (folder / "1.metrics.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_the_gateways_own_and_gone_at_its_end(tmp_path: Path) -> None:
    with run_folder(tmp_path) as first, run_folder(tmp_path) as second:
        assert first != second
        assert first.is_dir() and second.is_dir(), "a gateway that runs keeps its own"
        assert first.parent.stat().st_mode & 0o077 == 0
        parent = first.parent
    assert list(parent.iterdir()) == []


def test_what_a_killed_gateway_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env={"PYTHONPATH": str(SCRIPTS)})
    assert killed.returncode == -9
    (left,) = (tmp_path / "gateway-workers").iterdir()
    with run_folder(tmp_path) as folder:
        assert list((tmp_path / "gateway-workers").iterdir()) == [folder]
    assert not left.exists()


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    (tmp_path / "gateway-workers" / "notes").mkdir(parents=True)
    with run_folder(tmp_path):
        pass
    assert (tmp_path / "gateway-workers" / "notes").is_dir()

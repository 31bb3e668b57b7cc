"""`demo.py` as `make demo` runs it: the life cycle with the real model, and nothing left, not even if interrupted."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from support import SCRIPTS, SKILL, eventually, need_engine, run_script

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def model_and_temporary_folder(own_state: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [name for name in ("xllamacpp", "flask", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    need_engine("smollm2", not missing, f"{', '.join(missing)} not installed: pip install '.[demo]'")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))


def services_of(folder: Path) -> list[int]:
    """The processes of services whose registry is below that folder, and of what keeps its state in a demo's there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            ours = str(folder) in environ.get("TAO_REGISTRY", "")
            ours = ours or str(folder / "temporary") in environ.get("XDG_STATE_HOME", "")
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_it_starts_asks_reports_and_stops_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_script("demo", timeout=300)
    assert done.document["content"].strip()
    assert done.document["usage"]["completion_tokens"] > 0
    for script in ("start_service", "send_request", "serve_gateway", "callers", "usage_report", "stop_service"):
        assert f"$ python scripts/{script}.py" in done.stderr
    through_the_gateway = done.document["gateway"]
    assert through_the_gateway["usage"]["completion_tokens"] > 0
    report = done.stderr[done.stderr.index("usage_report.py") :]
    (row,) = [line for line in report.splitlines() if through_the_gateway["caller"] in line]
    assert f"{through_the_gateway['usage']['prompt_tokens']}" in row
    assert "ANTHROPIC_API_KEY" in done.stderr
    assert not re.search(r"tao-[A-Za-z0-9]{8}-", done.stdout + done.stderr), "a caller's key was printed"
    assert done.document["content"].strip() in done.stderr
    assert services_of(tmp_path) == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not Path(os.environ["TAO_INF_MS_STATE_FILE"]).exists()


@pytest.mark.parametrize("point", ["start_service", "ready in", "send_request", "serve_gateway", "callers"])
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_any_point_it_leaves_nothing(tmp_path: Path, point: str, by: signal.Signals) -> None:
    demo = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "demo.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert demo.stderr is not None
    for line in demo.stderr:
        if point in line:
            break
    demo.send_signal(by)
    rest = threading.Thread(target=demo.stderr.read)
    rest.start()
    assert demo.stdout is not None
    told = demo.stdout.read()
    rest.join()
    assert demo.wait(timeout=60) in (130, 143)
    assert "interrupted" in told
    eventually(lambda: services_of(tmp_path) == [], timeout=10)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_start_that_fails_is_told_with_its_own_error(tmp_path: Path) -> None:
    # Without bash on PATH the platform refuses.
    failed = run_script("demo", env={"PATH": str(tmp_path)}, expect=1)
    assert failed.document["error"]["type"] == "bash_missing"
    assert failed.document["error"]["fix"]


def test_the_makefile_works_from_a_path_with_spaces_and_a_second_time_installs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    (folder / "scripts").mkdir(parents=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for file in ("Makefile", "pyproject.toml"):
        (folder / file).write_bytes((SKILL / file).read_bytes())
    # The interpreter is the test's own; what it is asked to do is what matters.
    (folder / "scripts" / "demo.py").write_text("print('demo ran')\n")
    (folder / "python3").write_text(FAKE_PYTHON.format(real=sys.executable))
    (folder / "python3").chmod(0o755)

    def make(target: str) -> str:
        command = ["make", "-C", str(folder), target, f"PYTHON={folder}/python3"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "demo ran" in make("demo")
    calls = (folder / "calls").read_text().splitlines()
    assert any("-m venv" in call for call in calls)
    assert any("--editable .[demo]" in call for call in calls)
    (folder / "calls").unlink()
    assert "demo ran" in make("demo")
    assert (folder / "calls").read_text().splitlines() == ["scripts/demo.py"]


FAKE_PYTHON = """#!/bin/sh
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
case $here in */.venv/bin) root=${{here%/.venv/bin}} ;; *) root=$here ;; esac
echo "$*" >> "$root/calls"
case "$*" in
    *"-m venv"*) mkdir -p "$root/.venv/bin" && cp "$0" "$root/.venv/bin/python" ;;
    *"-m pip"*) ;;
    *) exec "{real}" "$@" ;;
esac
"""

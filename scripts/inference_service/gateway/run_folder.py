"""Where the workers of one gateway leave each other their figures and meters, for as long as it runs.

Its name says whose it is: what a gateway left that was killed is removed when the next one starts.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from inference_service import processes

_FOLDER = "gateway-workers"


@contextlib.contextmanager
def run_folder(state_directory: Path) -> Iterator[Path]:
    """A new folder of this process's own below the state directory, removed at the end.

    Raises:
        OSError: it cannot be made.
    """
    folders = state_directory / _FOLDER
    folders.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in folders.iterdir():
        if not _is_in_use(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    me = processes.this_process()
    with tempfile.TemporaryDirectory(prefix=f"{me['pid']}@{me['started']}@", dir=folders) as name:
        yield Path(name)


def _is_in_use(name: str) -> bool:
    pid, _, rest = name.partition("@")
    try:
        return processes.is_same(int(pid), float(rest.partition("@")[0]))
    except ValueError:
        # Nobody of ours named it.
        return True

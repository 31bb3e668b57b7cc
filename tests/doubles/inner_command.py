"""Has the scripts start the double of a TAO server (tao_server.py) where a service's inner command would run.

The inner command begins with `python3`, and on local-process that is found beside the interpreter that runs the
scripts. So the scripts are run by a link to this interpreter, and beside it lies a `python3` that starts the double.
Everything else, from the command line to the process, is the real thing.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

_DOUBLE = Path(__file__).resolve().parent / "tao_server.py"


class InnerCommand:
    """What a started service does: `behave("--load-seconds", "2")` gives the double's options from now on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._options = folder / "options"
        binaries, packages = folder / "bin", folder / "packages"
        # The arch's own packages have to be there for the platform to take it; the double needs none.
        for package in ("xllamacpp", "flask"):
            (packages / package).mkdir(parents=True)
        binaries.mkdir()
        python = binaries / "python"
        python.symlink_to(Path(sys.executable).resolve())
        program = binaries / "python3"
        program.write_text(
            f"#!/bin/bash\neval exec {shlex.quote(shlex.quote(str(python)))} {shlex.quote(shlex.quote(str(_DOUBLE)))}"
            f' "$(cat {shlex.quote(str(self._options))})" \'"${{@:3}}"\'\n'
        )
        program.chmod(0o755)
        self.behave()
        site = sysconfig.get_paths()["purelib"]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((site, str(packages))))
        monkeypatch.setattr(sys, "executable", str(python))

    def behave(self, *options: str) -> None:
        """Start the double with these options from now on."""
        self._options.write_text(shlex.join(options))


def processes() -> list[psutil.Process]:
    """The processes of the services that this test's registry owns."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TAO_REGISTRY", "").endswith(os.environ["TAO_INF_MS_STATE_FILE"]):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found

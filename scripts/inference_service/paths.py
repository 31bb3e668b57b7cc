"""Where things are: the skill's own folders, and the files we keep for the user.

The skill works from any folder and from any working directory, so every path starts from this file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
SKILL = SCRIPTS.parent
REFERENCES = SKILL / "references"
SCHEMAS = REFERENCES / "schemas"
PLATFORMS = SKILL / "platform"
VERSIONS = SKILL / "versions.yaml"

APPLICATION = "tao-run-inference-service"


def registry_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The service registry (seed 4.3): TAO_INF_MS_STATE_FILE, or the file that the seed names."""
    # A folder that everybody may write to: registry_file.py refuses what is not ours there.
    return Path(environ.get("TAO_INF_MS_STATE_FILE") or "/tmp/tao-inf-ms-state.json")  # noqa: S108


def registry_owner(environ: Mapping[str, str] = os.environ) -> str:
    """Who keeps which registry, `<uid>:<file>`: what marks a service on an engine that several users share."""
    return f"{os.getuid()}:{registry_file(environ).absolute()}"


def shared_registry_owner(environ: Mapping[str, str] = os.environ) -> str:
    """The same where several machines share a platform and uid and file may be alike: with this machine's name."""
    import socket

    return f"{registry_owner(environ)}@{socket.gethostname()}"


def request_log_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The request log: TAO_INF_REQUEST_LOG, or requests.db in the user's state directory."""
    override = environ.get("TAO_INF_REQUEST_LOG")
    return Path(override) if override else state_directory() / "requests.db"


def state_directory() -> Path:
    """Where what must outlive a restart is kept (request log, logs of local processes). Not created here."""
    from platformdirs import user_state_path

    return user_state_path(APPLICATION, appauthor=False)


def cache_directory() -> Path:
    """Where what can be fetched again is kept (model weights). Not created here."""
    from platformdirs import user_cache_path

    return user_cache_path(APPLICATION, appauthor=False)


def exists(path: str) -> bool:
    """Whether there is such a path; one that this user may not look at, or that is too long to be one, is not there."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for those


def absolute(path: str) -> str:
    """The absolute path of what a user wrote, `~` included where there is such a home."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - pathlib raises for a home that is not

"""The token that an endpoint wants of every request, kept in a file that only this user can read.

The registry has the file's name. Lepton tells a token that it generates once, in the answer to the create: whoever dies
before the file is written has lost it, and `Driver.reach` then sets a new one.
"""

from __future__ import annotations

import os
import secrets as random_secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference_service import paths
from inference_service.errors import ToolError

# What Lepton shows where it does not show a token.
_REDACTED = "***"


def file_of(job_id: str) -> Path:
    """Where the token of this service is kept."""
    return paths.state_directory() / "tokens" / f"lepton-{job_id}"


def generate() -> str:
    """A token that nobody can guess."""
    return random_secrets.token_urlsafe(32)


def of(deployment: Any) -> str | None:
    """The token that Lepton tells in an answer, where it does."""
    told = (deployment.spec.api_tokens if deployment.spec else None) or ()
    return next((each.value for each in told if each.value and each.value != _REDACTED), None)


def save(job_id: str, token: str) -> None:
    """Keep the token for this service.

    Raises:
        ToolError: it cannot be written.
    """
    replace(job_id, token, lambda: None)


def replace(job_id: str, token: str, make_it_valid: Callable[[], None]) -> None:
    """Keep the token, once it is valid: it is written before, so that a full disk costs nothing, and named after.

    Raises:
        ToolError: it cannot be written; or what `make_it_valid` raises. The file is then as it was before.
    """
    file = file_of(job_id)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as opened:
                opened.write(token + "\n")
                opened.flush()
                os.fsync(descriptor)
            make_it_valid()
            draft.replace(file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ToolError(
            "token_not_kept", f"the endpoint's token cannot be kept in {file}: {error.strerror}", f"df {file.parent}"
        ) from error


def forget(job_id: str) -> None:
    """Remove the token of a service that is no more.

    Raises:
        ToolError: it cannot be removed.
    """
    file = file_of(job_id)
    for each in (file, *file.parent.glob(f".{file.name}.*")):
        try:
            each.unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ToolError("token_not_removed", f"{each} cannot be removed: {error.strerror}", f"rm {each}") from error

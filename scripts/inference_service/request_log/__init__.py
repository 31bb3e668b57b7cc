"""Every request leaves one row: who sent what to which service, how long it took, what it used and what it cost."""

from __future__ import annotations

from pathlib import Path

from inference_service import paths
from inference_service.request_log.rows import LoggedRequest, Outcome
from inference_service.request_log.sqlite_log import RequestLog

__all__ = ["LoggedRequest", "Outcome", "RequestLog", "open"]


def open(path: Path | None = None) -> RequestLog:
    """The request log at `path`, by default the user's (`paths.request_log_file`). Nothing is read or made yet."""
    return RequestLog(path or paths.request_log_file())

"""Which requests the log has as sent and not yet answered."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from inference_service.request_log.rows import UNFINISHED
from inference_service.sql import sqlite_file
from inference_service.sql.values import stored_time


def newest(path: Path, job_id: str, since: datetime) -> Mapping[str, str] | None:
    """`request_id`, `caller` and `time` of the request to this service, sent since then, that was sent last and has no
    outcome: it is under way, or its sender was killed.

    Raises:
        ToolError: the log is there and cannot be read.
    """
    if not path.exists():
        return None
    try:
        connection = sqlite_file.connect(path)
        try:
            connection.row_factory = sqlite3.Row
            row = connection.execute(
                "SELECT request_id, caller, time FROM requests WHERE time >= ? AND job_id = ? AND error_type = ?"
                " ORDER BY time DESC LIMIT 1",
                (stored_time(since), job_id, UNFINISHED),
            ).fetchone()
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise sqlite_file.unusable(path, error) from error
    return None if row is None else dict(row)

"""The request log in SQLite: a row before a request is sent, completed when its answer is there.

A process that dies in between leaves a row that says `unfinished`. A log that cannot be written never costs anybody an
answer: what was not recorded is said once on standard error, with what mends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_service import output, secrets
from inference_service.request_log.rows import UNFINISHED, LoggedRequest, Outcome
from inference_service.sql.values import stored_time

if TYPE_CHECKING:
    import sqlite3


class RequestLog:
    """The log at one path. Making it does no I/O; `begin` and `finish` never raise for a log that cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._complained = False

    def begin(self, request: LoggedRequest) -> None:
        """Record a request that is about to be sent, as unfinished."""
        with self._never_in_the_way(f"request {request.request_id} is not recorded"):
            row = secrets.redact_document(
                {**asdict(request), "time": stored_time(request.time), "error_type": UNFINISHED}
            )
            self._execute(_insert(row), row)

    def finish(self, request_id: str, outcome: Outcome) -> None:
        """Complete the row of a request that `begin` recorded."""
        with self._never_in_the_way(f"what became of request {request_id} is not recorded"):
            cost = None if outcome.cost_usd is None else format(outcome.cost_usd, "f")
            row = {**asdict(outcome), "cost_usd": cost}
            self._execute(_update(row), {**row, "request_id": request_id})

    def close(self) -> None:
        """Let go of the file. A later `begin` opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, statement: str, row: Mapping[str, Any]) -> None:
        if self._connection is None:
            from inference_service.sql import sqlite_file

            self._connection = sqlite_file.connect(self.path)
        self._connection.execute(statement, row)

    @contextmanager
    def _never_in_the_way(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Whatever it was: the user's answer is worth more than the row.
            self.close()
            if not self._complained:
                self._complained = True
                self._complain(consequence, error)

    def _complain(self, consequence: str, error: Exception) -> None:
        if isinstance(error, ImportError):
            output.note(f"warning: {consequence}: this Python has no sqlite3 ({error}); fix: use a Python that has it")
            return
        from inference_service.sql import sqlite_file

        problem = sqlite_file.unusable(self.path, error)
        output.note(f"warning: {consequence}: {problem.message}; fix: {problem.fix}")


def _insert(row: Mapping[str, Any]) -> str:
    return f"INSERT INTO requests ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"  # noqa: S608


def _update(row: Mapping[str, Any]) -> str:
    return f"UPDATE requests SET {', '.join(f'{name} = :{name}' for name in row)} WHERE request_id = :request_id"  # noqa: S608

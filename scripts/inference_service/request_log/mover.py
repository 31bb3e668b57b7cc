"""The thread that moves rows into the database, from memory as a rule, from the journal's files where memory lost them.

It takes what waits, stores it in one transaction, and tells the recorder, whose bookkeeping is all on the event loop's
thread. It holds Python's lock for microseconds at a time, because requests are answered beside it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from inference_service import sql
from inference_service.request_log.inserting import Settle, SettlementFailed, Storable, insert
from inference_service.request_log.journal import Journal, Segment, read
from inference_service.request_log.rows import RequestRow
from inference_service.request_log.stored_rows import Values, row_of, storable

BATCH = 500
_REPLAYED_AT_ONCE = 100
_BREATH_SECONDS = 0.005
_LONGEST_BACKOFF_SECONDS = 5.0
_ADOPTION_SECONDS = 60.0


@dataclass
class Replayed:
    """A row from a file; who settles it needs the row itself, who stores it does not."""

    values: Values

    @property
    def row(self) -> RequestRow:
        """The row that was written."""
        return row_of(self.values)


class _Stopped(Exception):
    """The thread has to end in the middle of a file, which is moved another time."""


@dataclass(frozen=True)
class Callbacks:
    """What the thread says, each called on the thread: `committed` a batch is stored; `failed` it is not, and waits in
    front of the queue again; `read` a segment's file is moved; `report` a sentence for whoever runs the gateway."""

    committed: Callable[[Sequence[Storable]], None]
    failed: Callable[[Exception], None]
    read: Callable[[Segment], None]
    report: Callable[[str], None]


class Mover:
    """`queue` and `files` are filled by the recorder, which calls `wake` if the thread is `idle`."""

    def __init__(
        self, database: sql.Database, journal: Journal, settle: Settle, gather_seconds: float, tell: Callbacks
    ) -> None:
        self.queue: deque[Storable] = deque()
        self.files: deque[Segment] = deque()
        self.in_flight: Sequence[Storable] = ()
        self.idle = False
        self._database = database
        self._journal = journal
        self._settle = settle
        self._gather_seconds = gather_seconds
        self._tell = tell
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._backoff = 0.0
        self._adopted_at = -_ADOPTION_SECONDS
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        """Begin, with what dead processes left."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self.idle = False
        self._wake.set()

    def stop(self) -> None:
        """End after the batch in hand."""
        self._stopping.set()
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, or for so long."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._step()
                self._backoff = 0.0
            except _Stopped:
                break
            except Exception as error:
                self._backoff = min(_LONGEST_BACKOFF_SECONDS, max(0.1, self._backoff * 2))
                self._tell.failed(error)
                self._stopping.wait(self._backoff * random.uniform(0.5, 1.0))  # noqa: S311 - replicas must not retry as one
        self._database.close()

    def _step(self) -> None:
        if self.queue:
            self._move_batch()
            self._stopping.wait(_BREATH_SECONDS if len(self.queue) >= BATCH else self._gather_seconds)
        elif self.files:
            segment = self.files[0]
            self._move_file(segment.path)
            self.files.popleft()
            self._tell.read(segment)
        elif time.monotonic() - self._adopted_at >= _ADOPTION_SECONDS:
            self._adopt()
            self._adopted_at = time.monotonic()
        else:
            self._sleep()

    def _sleep(self) -> None:
        self._wake.clear()
        self.idle = True
        # Looked at once more: what came before `idle` was set woke nobody.
        if not self.queue and not self.files and not self._stopping.is_set():
            self._wake.wait(max(0.0, self._adopted_at + _ADOPTION_SECONDS - time.monotonic()))
        self.idle = False

    def _move_batch(self) -> None:
        batch: list[Storable] = []
        self.in_flight = batch
        while self.queue and len(batch) < BATCH:
            # Whoever looks sees each row in one of the two at any time.
            batch.append(self.queue[0])
            self.queue.popleft()
        try:
            self._store(batch)
        except BaseException:
            self.queue.extendleft(reversed(batch))
            self.in_flight = ()
            raise
        self._tell.committed(batch)
        self.in_flight = ()

    def _move_file(self, path: Path) -> None:
        contents = read(path)
        if contents.damaged:
            aside = self._journal.set_aside(path.name, contents.damaged)
            self._tell.report(f"{len(contents.damaged)} damaged records of the journal {path} are set aside in {aside}")
        for start in range(0, len(contents.rows), _REPLAYED_AT_ONCE):
            if self._stopping.is_set():
                raise _Stopped
            rows: list[Storable] = [Replayed(values) for values in contents.rows[start : start + _REPLAYED_AT_ONCE]]
            self._store(rows, perhaps_known=True)
            # What comes now does not wait for what is old.
            while self.queue and not self._stopping.is_set():
                self._move_batch()
            self._stopping.wait(_BREATH_SECONDS)

    def _adopt(self) -> None:
        with self._journal.leftovers() as leftovers:
            for path in leftovers:
                self._move_file(path)
                path.unlink()

    def _store(self, entries: Sequence[Storable], *, perhaps_known: bool = False) -> None:
        try:
            insert(self._database, entries, self._settle, perhaps_known=perhaps_known)
        except (sql.DatabaseUnusable, SettlementFailed, OSError):
            raise
        except Exception as error:
            # One of them holds what the database does not take; the others must not wait for it.
            if len(entries) > 1:
                middle = len(entries) // 2
                self._store(entries[:middle], perhaps_known=True)
                self._store(entries[middle:], perhaps_known=True)
            else:
                self._store_cleaned(entries[0], error)

    def _store_cleaned(self, entry: Storable, error: Exception) -> None:
        cleaned = storable(entry.values)
        if cleaned != entry.values:
            entry.values = cleaned
            self._store([entry], perhaps_known=True)
            return
        aside = self._journal.set_aside("rows.jsonl", [orjson.dumps(entry.values)])
        self._tell.report(f"a request's row cannot be stored ({error}) and is set aside in {aside}")

"""The gateway's side of the request log: a row per finished request, durable before the answer's last byte is out.

Durable in the journal (the default with SQLite): `record` writes the row to this process's journal, some microseconds,
and a thread moves rows into the database in batches. Durable in the database (the default with PostgreSQL, whose
gateways may lose their disk): `record` gives a future that is done when the row's transaction is committed, one for all
rows that wait at that time; if that takes longer than COMMIT_SECONDS, or the database is not there, the row goes to the
journal instead and the future is done then. Either way no row is lost with the process, and none is stored twice.

With a full disk rows wait in memory, NOT_WRITTEN_ROWS of them; with a dead database in the journal, up to its size.
Then `refusing` says why no new request should be taken in hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Literal

from inference_service import output, sql
from inference_service.request_log import journal as journals
from inference_service.request_log.inserting import Settle
from inference_service.request_log.journal import Journal, JournalFull, Segment
from inference_service.request_log.mover import Callbacks, Mover
from inference_service.request_log.rows import RequestRow
from inference_service.request_log.stored_rows import Values, storable, values_of

COMMIT_SECONDS = 1.0
NOT_WRITTEN_ROWS = 10_000
_REMEMBERED_ROWS = 2_000
_TICK_SECONDS = 0.25
_GATHER_SECONDS = 0.05

Place = Literal["journal", "database"]


class _Entry:
    """One row on its way."""

    __slots__ = ("future", "row", "segment", "since", "stored", "values")

    def __init__(self, values: Values, row: RequestRow) -> None:
        self.values = values
        self.row = row
        self.segment: Segment | None = None
        self.future: asyncio.Future[None] | None = None
        self.since = 0.0
        self.stored = False


class Recorder:
    """All of it is used on one event loop's thread.

    `settle` is called inside the transaction that stores rows, with those that are new, each row once in all processes.
    `report` gets a sentence where something goes wrong or right again.
    """

    def __init__(
        self,
        database_url: str,
        journal: Journal | None = None,
        settle: Settle = lambda cursor, rows: None,
        durable_in: Place | None = None,
        report: Callable[[str], None] = output.note,
    ) -> None:
        self._database = sql.open(database_url)
        self._journal = journal or Journal(journals.folder_of(self._database.shown))
        in_database = durable_in or ("database" if self._database.dialect == "postgresql" else "journal")
        self.durable_in: Place = in_database
        self.refusing: str | None = None
        """Why new requests should be refused now; None as a rule."""
        self.trouble: str | None = None
        """Why rows do not reach the database now; requests are served all the same."""
        self._report = report
        # Rows are awaited in the database as long as it keeps up.
        self._awaited = in_database == "database"
        self._not_written: list[_Entry] = []
        self._journal_fails = False
        self._loop: asyncio.AbstractEventLoop
        self._ticking: asyncio.TimerHandle | None = None
        self._mover = Mover(
            self._database,
            self._journal,
            settle,
            0.0 if self._awaited else _GATHER_SECONDS,
            Callbacks(self._on_loop(self._committed), self._on_loop(self._failed), self._on_loop(self._read), report),
        )
        self._queue = self._mover.queue

    def start(self) -> None:
        """Begin moving rows, those that dead processes left first. Called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._mover.start()
        self._tick()

    def record(self, row: RequestRow) -> asyncio.Future[None] | None:
        """Record a finished request. None: it is durable. A future: it is once that is done, which is soon.

        Never raises; a row that can neither be written nor stored now waits in memory.
        """
        entry = _Entry(values_of(row), row)
        if not self._awaited:
            self._keep(entry)
            return None
        entry.future = future = self._loop.create_future()
        entry.since = time.monotonic()
        self._queue.append(entry)
        if self._mover.idle:
            self._mover.wake()
        return future

    @property
    def waiting(self) -> int:
        """Rows in memory that the database does not have yet."""
        return len(self._queue) + len(self._mover.in_flight)

    @property
    def journal_bytes(self) -> int:
        """The size of the journal's files that hold rows of this process which the database may not have."""
        return self._journal.bytes

    async def close(self, timeout: float = 5.0) -> None:
        """Store what waits; what the database does not take within `timeout` seconds stays in the journal."""
        self._stop_ticking()
        deadline = time.monotonic() + timeout
        while self.waiting and self.trouble is None and time.monotonic() < deadline:
            if self._mover.idle:
                self._mover.wake()
            await asyncio.sleep(0.005)
        self._mover.stop()
        await asyncio.to_thread(self._mover.join, max(0.2, deadline - time.monotonic()))
        # What the thread said last.
        await asyncio.sleep(0)
        self._journal_what_waits(older_than=float("inf"))
        lost = sum(not entry.stored for entry in self._not_written)
        if lost:
            self._report(f"{lost} requests are not recorded: {self.trouble or self.refusing or 'the disk is full'}")
        self._journal.close()

    def _keep(self, entry: _Entry) -> None:
        """Into the journal, and into memory, where the thread finds it sooner."""
        self._journaled(entry)
        if entry.segment is not None and len(self._queue) >= _REMEMBERED_ROWS:
            entry.segment.in_file_only = True
            return
        self._queue.append(entry)
        if self._mover.idle:
            self._mover.wake()

    def _journaled(self, entry: _Entry) -> bool:
        try:
            try:
                entry.segment = self._journal.append(entry.values)
            except TypeError:
                entry.values = storable(entry.values)
                entry.segment = self._journal.append(entry.values)
        except OSError as error:
            if not self._journal_fails:
                self._journal_fails = True
                self._report(f"the journal cannot be written, rows wait in memory: {error}")
            self._not_written.append(entry)
            if isinstance(error, JournalFull) or len(self._not_written) >= NOT_WRITTEN_ROWS:
                self.refusing = f"requests cannot be recorded: {error}"
            return False
        if entry.future is not None and not entry.future.done():
            entry.future.set_result(None)
        return True

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(_TICK_SECONDS, self._tick)
        if self._awaited:
            self._journal_what_waits(older_than=time.monotonic() - COMMIT_SECONDS)
        self._retry_not_written()
        if not self._mover.files:
            self._mover.files.extend(self._journal.to_be_read())
        if self._mover.files and self._mover.idle:
            self._mover.wake()

    def _stop_ticking(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()

    def _journal_what_waits(self, older_than: float) -> None:
        """Rows whose commit does not come go to the journal, all of them as soon as the oldest is `older_than` that."""
        # The tuple is made before the thread can take anything from the queue.
        waiting = (*self._mover.in_flight, *tuple(self._queue))
        unsafe = [each for each in waiting if isinstance(each, _Entry) and each.segment is None and not each.stored]
        if not unsafe or unsafe[0].since > older_than:
            return
        self._awaited = False
        known = {id(entry) for entry in self._not_written}
        for entry in unsafe:
            if entry.segment is None and id(entry) not in known:
                self._journaled(entry)

    def _retry_not_written(self) -> None:
        if not self._not_written:
            return
        waiting, self._not_written = [entry for entry in self._not_written if not entry.stored], []
        for place, entry in enumerate(waiting):
            if not self._journaled(entry):
                self._not_written.extend(waiting[place + 1 :])
                break
        if not self._not_written:
            self.refusing = None
            self._journal_fails = False
            self._report("the journal can be written again")

    def _on_loop(self, function: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: object) -> None:
            try:
                self._loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:
                # The loop is closed: the process ends, and the journal has what is not stored.
                return

        return called

    def _committed(self, batch: Sequence[_Entry]) -> None:
        for entry in batch:
            entry.stored = True
            if entry.segment is not None:
                entry.segment.moved += 1
            future = entry.future
            if future is not None and not future.done():
                future.set_result(None)
        self._journal.release()
        self._awaited = self.durable_in == "database"
        self._all_is_well()

    def _read(self, segment: Segment) -> None:
        self._journal.remove(segment)
        self._all_is_well()

    def _all_is_well(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            self._report(f"the database {self._database.shown} takes rows again")
        if self._not_written:
            self._retry_not_written()

    def _failed(self, error: Exception) -> None:
        if self.trouble is None:
            self._report(f"rows wait in the journal: {error}")
        self.trouble = str(error)
        self._journal_what_waits(older_than=float("inf"))

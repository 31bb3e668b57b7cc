"""The recorder in both dialects: each row stored once and settled once, whatever dies, fills up or is not there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path

import pytest
from postgresql_server import PostgresqlServer
from support import SCRIPTS

from inference_service import sql
from inference_service.request_log import recorder as recorders
from inference_service.request_log.journal import Journal, read
from inference_service.request_log.recorder import Place, Recorder
from inference_service.request_log.rows import RequestRow

ROW = RequestRow(
    request_id="r",
    time=1769850000.25,
    route="/v1/messages",
    caller="ana",
    caller_id="ab12cd34",
    team="search",
    project="web",
    tags={"feature": "é", "tier": "gold"},
    network_arch="claude",
    model="claude-haiku-4-5",
    platform="anthropic",
    stream=True,
    http_status=200,
    queue_seconds=0.25,
    total_seconds=1.5,
    input_tokens=2**40,
    output_tokens=7,
    cache_write_1h_tokens=3,
    cost_usd=Decimal("0.000000000000000001"),
    priced_by="tokens",
    retries=1,
    gateway="gw-1",
)

PLACES: tuple[Place, ...] = ("journal", "database")


def numbered(count: int, prefix: str = "r") -> list[RequestRow]:
    return [replace(ROW, request_id=f"{prefix}-{number}") for number in range(count)]


def settle(cursor: sql.Cursor, rows: Sequence[RequestRow]) -> None:
    """Counts what it is given where the count is kept or lost with the rows."""
    cursor.executemany("INSERT INTO settled (request_id) VALUES (:id)", [{"id": row.request_id} for row in rows])


@pytest.fixture
def settling(database: sql.Database) -> sql.Database:
    with database.transaction() as cursor:
        cursor.execute("CREATE TABLE settled (request_id TEXT)")
    return database


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def stored(database: sql.Database) -> list[str]:
    """The ids of the rows; fails unless each is there once and settled once."""
    with database.snapshot() as cursor:
        ids = sorted(id for (id,) in cursor.execute("SELECT request_id FROM requests"))
        settled = sorted(id for (id,) in cursor.execute("SELECT request_id FROM settled"))
    assert len(set(ids)) == len(ids)
    assert settled == ids
    return ids


def files(journal: Journal) -> list[Path]:
    return sorted(journal.folder.iterdir()) if journal.folder.exists() else []


async def until(probe: Callable[[], object], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not probe():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.01)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


@pytest.mark.parametrize("place", PLACES)
def test_a_row_is_stored_with_all_that_is_known(
    place: Place, database_url: str, settling: sql.Database, journal: Journal
) -> None:
    async def work() -> None:
        recorder = Recorder(database_url, journal, settle, place)
        recorder.start()
        future = recorder.record(ROW)
        assert (future is None) == (place == "journal")
        if future is not None:
            await asyncio.wait_for(future, 10)
            assert stored(settling) == ["r"]
        await recorder.close()

    run(work)
    assert stored(settling) == ["r"]
    assert files(journal) == []
    with settling.snapshot() as cursor:
        (row,) = cursor.execute("SELECT * FROM requests").documents()
    assert sql.as_moment(row["time"]).timestamp() == ROW.time
    assert sql.as_decimal(row["cost_usd"]) == ROW.cost_usd
    assert row["tags"] in ('{"feature":"é","tier":"gold"}', {"feature": "é", "tier": "gold"})
    plain = {each.name for each in fields(RequestRow)} - {"time", "cost_usd", "tags"}
    assert {name: row[name] for name in plain} == {name: getattr(ROW, name) for name in plain}


@pytest.mark.parametrize("place", PLACES)
def test_the_same_request_recorded_twice_is_one(
    place: Place, database_url: str, settling: sql.Database, journal: Journal
) -> None:
    async def work() -> None:
        recorder = Recorder(database_url, journal, settle, place)
        recorder.start()
        for row in [*numbered(30), *numbered(40)]:
            recorder.record(row)
        await recorder.close()

    run(work)
    assert len(stored(settling)) == 40


def test_where_a_row_is_durable_follows_the_database(database_url: str, journal: Journal) -> None:
    recorder = Recorder(database_url, journal)
    assert recorder.durable_in == ("journal" if database_url.startswith("sqlite") else "database")


@pytest.mark.parametrize("place", PLACES)
def test_more_rows_than_memory_may_hold_are_moved_from_the_file(
    place: Place, database_url: str, settling: sql.Database, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "_REMEMBERED_ROWS", 100)

    async def work() -> None:
        recorder = Recorder(database_url, journal, settle, place)
        with locked_out(settling):
            recorder.start()
            for row in numbered(50, "early"):
                recorder.record(row)
            await until(lambda: journal.bytes > 0)
            for row in numbered(700):
                assert recorder.record(row) is None
            # As many as are remembered, once in the queue and once in the thread's hands, and the first ones.
            assert recorder.waiting <= 250
        await until(lambda: not files(journal) and not recorder.waiting)
        await recorder.close()

    run(work)
    assert len(stored(settling)) == 750


@contextlib.contextmanager
def locked_out(database: sql.Database) -> Iterator[None]:
    """Nobody can write rows for the length of the block, and nobody is told why."""
    with database.transaction() as cursor:
        if database.dialect == "postgresql":
            cursor.execute("LOCK TABLE requests")
        yield


def test_a_commit_that_does_not_come_is_waited_for_a_second_and_no_more(
    database_url: str, settling: sql.Database, journal: Journal
) -> None:
    async def work() -> None:
        recorder = Recorder(database_url, journal, settle, "database")
        recorder.start()
        with locked_out(settling):
            started = time.monotonic()
            futures = [recorder.record(row) for row in numbered(20)]
            await asyncio.gather(*(future for future in futures if future is not None))
            assert recorders.COMMIT_SECONDS <= time.monotonic() - started < recorders.COMMIT_SECONDS + 2
            (file,) = files(journal)
            assert len(read(file).rows) == 20
            assert recorder.record(replace(ROW, request_id="later")) is None
        await until(lambda: not recorder.waiting)
        future = recorder.record(replace(ROW, request_id="last"))
        assert future is not None, "the database keeps up again"
        await future
        await recorder.close()

    run(work)
    assert len(stored(settling)) == 22
    assert files(journal) == []


@pytest.mark.parametrize("place", PLACES)
def test_an_outage_of_the_server_fails_nothing(
    place: Place, postgresql: PostgresqlServer, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgresql.new_database()
    database = sql.open(url)
    with database.transaction() as cursor:
        cursor.execute("CREATE TABLE settled (request_id TEXT)")

    async def work() -> None:
        recorder = Recorder(url, journal, settle, place)
        recorder.start()
        recorded = 0

        async def record(count: int) -> None:
            nonlocal recorded
            for _ in range(count):
                future = recorder.record(replace(ROW, request_id=f"r-{recorded}"))
                recorded += 1
                if future is not None:
                    await asyncio.wait_for(future, 5)
                await asyncio.sleep(0.001)

        await record(50)
        recording = asyncio.create_task(record(300))
        await asyncio.to_thread(postgresql.stop)
        await recording
        await until(lambda: recorder.trouble is not None)
        await record(50)
        assert recorder.refusing is None
        # Not in a thread: the server ends with the thread that starts it.
        postgresql.start()
        await until(lambda: recorder.trouble is None and not recorder.waiting, timeout=30)
        await record(50)
        await recorder.close()

    run(work)
    assert len(stored(database)) == 450
    assert files(journal) == []
    told = capsys.readouterr().err
    assert told.count("rows wait in the journal") == 1
    assert told.count("takes rows again") == 1
    database.close()


def test_a_server_that_is_not_there_at_the_end_leaves_the_rows_to_the_next(
    postgresql: PostgresqlServer, journal: Journal
) -> None:
    url = postgresql.new_database()
    database = sql.open(url)
    with database.transaction() as cursor:
        cursor.execute("CREATE TABLE settled (request_id TEXT)")

    async def first() -> None:
        recorder = Recorder(url, journal, settle)
        recorder.start()
        for row in numbered(20):
            recorder.record(row)
        await recorder.close(timeout=1)

    async def second() -> None:
        recorder = Recorder(url, Journal(journal.folder), settle)
        recorder.start()
        await until(lambda: not files(journal))
        await recorder.close()

    with postgresql.outage():
        run(first)
    assert len(files(journal)) == 1
    run(second)
    assert len(stored(database)) == 20
    database.close()


GATEWAY = """
import asyncio, os, sys
from pathlib import Path
from inference_service import sql
from inference_service.request_log.journal import Journal
from inference_service.request_log.recorder import Recorder
from inference_service.request_log.rows import RequestRow

url, folder, name, place = sys.argv[1:]

def settle(cursor, rows):
    cursor.executemany("INSERT INTO settled (request_id) VALUES (:id)", [{"id": row.request_id} for row in rows])

async def main():
    recorder = Recorder(url, Journal(Path(folder), segment_bytes=20_000), settle, place)
    recorder.start()
    number = 0

    async def answer(id):
        future = recorder.record(RequestRow(id, 1769850000.0, "/v1/messages", tags={"n": id}))
        if future is not None:
            await future
        os.write(1, (id + "\\n").encode())

    while True:
        await asyncio.gather(*(answer(f"{name}-{number + each}") for each in range(20)))
        number += 20
        await asyncio.sleep(0.002)

asyncio.run(main())
"""


@pytest.mark.parametrize("place", PLACES)
def test_a_gateway_killed_at_any_moment_loses_no_answered_request_and_stores_none_twice(
    place: Place, database_url: str, settling: sql.Database, journal: Journal
) -> None:
    answered: list[str] = []
    seed = random.Random(5)
    for life in range(6):
        # Two at a time: one may adopt what the other leaves.
        gateways = [
            subprocess.Popen(
                [sys.executable, "-c", GATEWAY, database_url, str(journal.folder), f"{life}{name}", place],
                env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
            for name in "ab"
        ]
        for gateway in gateways:
            assert gateway.stdout is not None
            answered.append(gateway.stdout.readline().decode().strip())
        for gateway in gateways:
            time.sleep(seed.uniform(0, 0.15))
            os.kill(gateway.pid, signal.SIGKILL)
        for gateway in gateways:
            out, complaints = gateway.communicate()
            assert complaints == b""
            # The last line may be half a name.
            answered += out.decode().split("\n")[:-1]

    async def survivor() -> None:
        recorder = Recorder(database_url, journal, settle, place)
        recorder.start()
        await until(lambda: not list(journal.folder.glob("[0-9]*")))
        await recorder.close()

    run(survivor)
    ids = stored(settling)
    assert set(answered) <= set(ids)
    assert len(answered) > 16


def test_a_damaged_record_is_set_aside_and_the_others_are_stored(
    database_url: str, settling: sql.Database, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    from inference_service.request_log.stored_rows import values_of

    dead = Journal(journal.folder)
    for row in numbered(9):
        segment = dead.append(values_of(row))
    dead.close()
    content = segment.path.read_bytes()
    segment.path.write_bytes(content.replace(b'"r-4"', b'"r-X"'))

    async def work() -> None:
        recorder = Recorder(database_url, journal, settle)
        recorder.start()
        await until(lambda: not list(journal.folder.glob("[0-9]*")))
        await recorder.close()

    run(work)
    assert stored(settling) == [f"r-{number}" for number in range(9) if number != 4]
    (aside,) = files(journal)
    assert b'"r-X"' in aside.read_bytes()
    assert str(aside) in capsys.readouterr().err


@pytest.mark.parametrize("place", PLACES)
def test_a_row_that_the_database_does_not_take_stops_no_other(
    place: Place, database_url: str, settling: sql.Database, journal: Journal
) -> None:
    nasty = [replace(ROW, request_id="nul", caller="a\0b", tags={"k": "\0"})]
    nasty += [replace(ROW, request_id="half", caller="\ud800"), replace(ROW, request_id="big", input_tokens=2**80)]

    async def work() -> None:
        recorder = Recorder(database_url, journal, settle, place)
        recorder.start()
        for row in [*numbered(5), *nasty, *numbered(5, "s")]:
            recorder.record(row)
        await recorder.close()

    run(work)
    assert len(stored(settling)) == 13


def test_a_settlement_that_fails_keeps_the_rows_until_it_works(
    database_url: str, settling: sql.Database, journal: Journal
) -> None:
    broken = [True]

    def failing(cursor: sql.Cursor, rows: Sequence[RequestRow]) -> None:
        settle(cursor, rows)
        if broken[0]:
            raise ValueError("no such window")

    async def work() -> None:
        recorder = Recorder(database_url, journal, failing, "journal")
        recorder.start()
        for row in numbered(10):
            recorder.record(row)
        await until(lambda: recorder.trouble is not None)
        assert "no such window" in str(recorder.trouble)
        assert stored(settling) == []
        broken[0] = False
        await until(lambda: recorder.trouble is None)
        await recorder.close()

    run(work)
    assert len(stored(settling)) == 10


def test_a_deadlock_is_tried_again_and_is_no_outage(postgresql: PostgresqlServer, journal: Journal) -> None:
    import psycopg

    url = postgresql.new_database()
    attempts = []

    def colliding(cursor: sql.Cursor, rows: Sequence[RequestRow]) -> None:
        attempts.append(len(rows))
        if len(attempts) < 3:
            raise psycopg.errors.DeadlockDetected("deadlock detected")

    async def work() -> None:
        recorder = Recorder(url, journal, colliding)
        recorder.start()
        future = recorder.record(ROW)
        assert future is not None
        await asyncio.wait_for(future, 5)
        assert recorder.trouble is None
        await recorder.close()

    run(work)
    assert attempts == [1, 1, 1]


def test_a_journal_as_large_as_it_may_be_refuses_until_the_database_is_back(
    database_url: str, settling: sql.Database, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal", segment_bytes=5_000, most_bytes=20_000)

    async def work() -> None:
        recorder = Recorder(database_url, journal, settle, "journal")
        recorder.start()
        with locked_out(settling):
            for row in numbered(200):
                recorder.record(row)
            assert recorder.refusing is not None
            assert "20,000 bytes" in recorder.refusing
        await until(lambda: recorder.refusing is None and not recorder.waiting)
        await recorder.close()

    run(work)
    assert len(stored(settling)) == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB; skips the test where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_rows_wait_in_memory_for_a_full_disk(
    small_disk: Path, database_url: str, settling: sql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "NOT_WRITTEN_ROWS", 300)
    journal = Journal(small_disk / "journal", segment_bytes=16 << 10)
    ballast = small_disk / "ballast"

    async def work() -> None:
        recorder = Recorder(database_url, journal, settle, "journal")

        def reason() -> str | None:
            return recorder.refusing

        with locked_out(settling):
            recorder.start()
            recorder.record(ROW)
            with contextlib.suppress(OSError):
                ballast.write_bytes(bytes(1 << 20))
            for row in numbered(200):
                recorder.record(row)
            assert reason() is None, "a bounded time of it is survived"
            for row in numbered(300, "s"):
                recorder.record(row)
            assert "No space left" in (reason() or "")
            ballast.unlink()
            await until(lambda: recorder.refusing is None)
            written = sum(len(read(file).rows) for file in files(journal))
            assert written == 501, "written as soon as there is room"
        await until(lambda: not recorder.waiting)
        await recorder.close()

    run(work)
    assert len(stored(settling)) == 501


def test_a_full_disk_does_not_keep_rows_from_a_database_elsewhere(
    small_disk: Path, postgresql: PostgresqlServer
) -> None:
    url = postgresql.new_database()
    database = sql.open(url)
    with database.transaction() as cursor:
        cursor.execute("CREATE TABLE settled (request_id TEXT)")
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(bytes(1 << 20))

    async def work() -> None:
        recorder = Recorder(url, Journal(small_disk / "journal"), settle, "journal")
        recorder.start()
        for row in numbered(300):
            recorder.record(row)
        await until(lambda: not recorder.waiting)
        await recorder.close()

    run(work)
    assert len(stored(database)) == 300
    database.close()


def test_an_old_row_of_send_request_and_new_ones_share_the_table(tmp_path: Path, journal: Journal) -> None:
    from datetime import datetime, timezone

    from inference_service import request_log

    file = tmp_path / "log.db"
    log = request_log.open(file)
    log.begin(request_log.LoggedRequest("sent", datetime.now(timezone.utc), "ana", None, "a", None, None, "/"))
    log.close()

    async def work() -> None:
        recorder = Recorder(sql.sqlite_url(file), journal)
        recorder.start()
        recorder.record(ROW)
        await recorder.close()

    run(work)
    connection = sqlite3.connect(file)
    assert connection.execute("SELECT request_id FROM requests ORDER BY id").fetchall() == [("sent",), ("r",)]
    connection.close()

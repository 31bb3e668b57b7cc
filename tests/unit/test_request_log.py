"""The request log: what a row holds, what survives concurrency, crashes and old versions, and what it never costs."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from support import SCRIPTS

from inference_service import request_log, sql
from inference_service.request_log.rows import LoggedRequest, Outcome
from inference_service.sql import migrations
from inference_service.sql.migrations import Migration

REQUEST = LoggedRequest(
    request_id="r-1",
    time=datetime(2026, 1, 31, 9, 0, tzinfo=timezone(timedelta(hours=2))),
    caller="ana",
    job_id="job-1",
    network_arch="smollm2",
    model="hf_model://org/model",
    platform="local-process",
    route="/v1/chat/completions",
)

# One process that records `count` requests as `name`, each begun and finished. It waits for a line to start.
WRITER = """
import sys
from datetime import datetime, timezone
from inference_service import request_log

name, count = sys.argv[1], int(sys.argv[2])
sys.stdin.readline()
log = request_log.open()
for number in range(count):
    request_id = f"{name}-{number}"
    log.begin(request_log.LoggedRequest(request_id, datetime.now(timezone.utc), name, None, "a", None, None, "/"))
    log.finish(request_id, request_log.Outcome(total_seconds=0.5, http_status=200))
"""

# The same, but it stays between the two and says so.
HANGING_WRITER = """
import sys, time
from datetime import datetime, timezone
from inference_service import request_log

log = request_log.open()
log.begin(request_log.LoggedRequest("hangs", datetime.now(timezone.utc), "ana", None, "a", None, None, "/"))
print("begun", flush=True)
time.sleep(600)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(file: Path | None = None) -> list[sqlite3.Row]:
    connection = sqlite3.connect(file or os.environ["TAO_INF_REQUEST_LOG"])
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute("SELECT * FROM requests ORDER BY id").fetchall()
    finally:
        connection.close()


def test_a_request_is_recorded_before_it_is_sent_and_completed_by_its_outcome() -> None:
    log = request_log.open()
    log.begin(REQUEST)
    (row,) = rows()
    assert row["error_type"] == "unfinished"
    assert row["total_seconds"] is None

    log.finish("r-1", Outcome(1.5, 200, None, 0.1, 0.7, 11, 22, 3, Decimal("0.00000000000000000001"), "tokens"))
    (row,) = rows()
    assert {name: value for name, value in dict(row).items() if value is not None or name == "error_type"} == {
        "id": 1,
        "request_id": "r-1",
        "time": "2026-01-31T07:00:00.000000Z",
        "caller": "ana",
        "job_id": "job-1",
        "network_arch": "smollm2",
        "model": "hf_model://org/model",
        "platform": "local-process",
        "route": "/v1/chat/completions",
        "http_status": 200,
        "error_type": None,
        "queue_seconds": 0.1,
        "first_byte_seconds": 0.7,
        "total_seconds": 1.5,
        "input_tokens": 11,
        "output_tokens": 22,
        "cached_tokens": 3,
        "cost_usd": "0.00000000000000000001",
        "priced_by": "tokens",
    }


def test_the_outcome_of_one_request_leaves_the_others_alone() -> None:
    log = request_log.open()
    for request_id in ("a", "b", "c"):
        log.begin(replace(REQUEST, request_id=request_id))
    log.finish("b", Outcome(total_seconds=1, error_type="timeout"))
    assert [row["error_type"] for row in rows()] == ["unfinished", "timeout", "unfinished"]


def test_the_log_is_private_to_its_user(tmp_path: Path) -> None:
    file = tmp_path / "new" / "requests.db"
    log = request_log.open(file)
    previous = os.umask(0)
    try:
        log.begin(REQUEST)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()} == {0o600}


def test_a_secret_in_a_name_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    request_log.open().begin(replace(REQUEST, caller="me hf_planted_secret"))
    (row,) = rows()
    assert row["caller"] == "me [redacted]"


def test_eight_processes_that_write_at_once_lose_nothing() -> None:
    writers = [start(WRITER, f"writer-{number}", "50") for number in range(8)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, complaints = writer.communicate(timeout=60)
        assert complaints == ""
    written = rows()
    assert len({row["request_id"] for row in written}) == 400
    assert all(row["error_type"] is None and row["http_status"] == 200 for row in written)


def test_a_process_killed_before_the_answer_leaves_a_row_that_says_so() -> None:
    writer = start(HANGING_WRITER)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "begun\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    (row,) = rows()
    assert (row["request_id"], row["error_type"]) == ("hangs", "unfinished")

    request_log.open().begin(REQUEST)
    assert len(rows()) == 2


LATER = (
    *migrations.MIGRATIONS,
    Migration(("ALTER TABLE requests ADD COLUMN colour TEXT",), ()),
    Migration(("CREATE INDEX by_caller ON requests (caller)",), ()),
)


@pytest.mark.parametrize("old", range(len(LATER) + 1))
def test_a_log_of_every_older_version_is_brought_up_to_date_with_its_rows(old: int, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    migrations.migrate(connection, LATER[:old])
    assert migrations.version(connection) == old
    if old:
        connection.execute(
            "INSERT INTO requests (request_id, time, caller, network_arch, route) VALUES ('r', 't', 'c', 'a', '/')"
        )

    migrations.migrate(connection, LATER)
    assert migrations.version(connection) == len(LATER)
    assert connection.execute("SELECT count(colour), count(*) FROM requests").fetchone() == (0, 1 if old else 0)
    applied = connection.execute("SELECT version FROM schema_version ORDER BY version").fetchall()
    assert applied == [(number,) for number in range(1, len(LATER) + 1)]


def test_this_version_writes_to_a_log_that_a_later_one_has_opened(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    connection = sqlite3.connect(file, isolation_level=None)
    migrations.migrate(connection, LATER)
    connection.close()
    log = request_log.open(file)
    log.begin(REQUEST)
    log.finish("r-1", Outcome(total_seconds=1))
    (row,) = rows(file)
    assert (row["total_seconds"], row["colour"]) == (1, None)


def test_a_migration_that_fails_leaves_the_version_before_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    migrations.migrate(connection)
    before = migrations.version(connection)
    broken = (*migrations.MIGRATIONS, Migration(("ALTER TABLE requests ADD COLUMN colour TEXT", "not SQL"), ()))
    with pytest.raises(sqlite3.OperationalError):
        migrations.migrate(connection, broken)
    assert migrations.version(connection) == before
    assert "colour" not in [column[1] for column in connection.execute("PRAGMA table_info(requests)")]


def recorded_nothing(log: request_log.RequestLog, capsys: pytest.CaptureFixture[str]) -> str:
    """Both calls return; the one complaint on standard error."""
    log.begin(REQUEST)
    log.finish("r-1", Outcome(total_seconds=1))
    told = capsys.readouterr()
    assert told.out == ""
    (complaint,) = told.err.splitlines()
    assert "request r-1 is not recorded" in complaint
    assert str(log.path) in complaint
    return complaint


@pytest.mark.parametrize("place", ["/proc/requests.db", "/proc/none/requests.db", "{file}/requests.db", "{folder}"])
def test_a_place_that_cannot_be_written_costs_one_complaint_and_no_answer(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    path = Path(place.format(file=tmp_path / "file", folder=tmp_path))
    assert "export TAO_INF_REQUEST_LOG=" in recorded_nothing(request_log.open(path), capsys)


def test_a_symbolic_link_is_refused_and_its_target_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "target", tmp_path / "link.db"
    link.symlink_to(target)
    assert "symbolic link" in recorded_nothing(request_log.open(link), capsys)
    assert not target.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_of_another_user_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.db"
    file.touch()
    os.chown(file, 65534, 65534)
    assert "another user" in recorded_nothing(request_log.open(file), capsys)


def test_a_corrupt_log_is_left_as_it_is_and_the_fix_starts_a_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    file = folder / "requests.db"
    file.write_bytes(b"not a database, not at all " * 100)
    before = file.read_bytes()
    complaint = recorded_nothing(request_log.open(file), capsys)
    assert file.read_bytes() == before

    subprocess.run(["bash", "-c", complaint.split("fix: ")[1]], check=True)
    log = request_log.open(file)
    log.begin(REQUEST)
    assert len(rows(file)) == 1
    assert (folder / "corrupt-requests.db" / "requests.db").read_bytes() == before


def limited(program: str, limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may make no file larger than `limit` bytes, which SQLite meets as a write that fails."""
    prelude = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + program, *arguments],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        input="go\n",
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("limit", [0, 4096, 50_000])
def test_a_disk_that_fills_up_costs_rows_but_no_answer_and_no_earlier_row(limit: int) -> None:
    request_log.open().begin(REQUEST)
    done = limited(WRITER, limit, "full", "2000")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "recorded" in done.stderr
    kept = rows()
    assert kept[0]["request_id"] == "r-1"
    assert len(kept) < 2001
    connection = sqlite3.connect(os.environ["TAO_INF_REQUEST_LOG"])
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_python_without_sqlite_costs_one_complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    monkeypatch.delitem(sys.modules, "inference_service.sql.sqlite_file", raising=False)
    monkeypatch.delattr(sql, "sqlite_file", raising=False)
    log = request_log.open()
    log.begin(REQUEST)
    assert "no sqlite3" in capsys.readouterr().err


def importable_without(modules: Sequence[str], statement: str) -> bool:
    program = f"{statement}\nimport sys\nsys.exit(any(name in sys.modules for name in {list(modules)!r}))"
    return (
        subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(SCRIPTS)}).returncode == 0
    )


@pytest.mark.usefixtures("unmeasured")
def test_sqlite_is_imported_only_when_the_log_is_used() -> None:
    assert importable_without(["sqlite3"], "from inference_service import request_log; request_log.open()")

"""Both dialects behind the one interface: parameters, transactions, migrations by many at once, errors, outages."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from postgresql_server import PostgresqlServer
from support import SCRIPTS

from inference_service import sql

INSERT = (
    "INSERT INTO requests (request_id, time, caller, network_arch, route, cost_usd, stream)"
    " VALUES (:id, :time, :caller, 'claude', '/v1/messages', :cost, :stream)"
)
NOON = datetime(2026, 1, 31, 12, 30, 0, 250_000, tzinfo=timezone.utc)


def row(id: str = "r", caller: str = "ana", cost: Decimal | None = None, time: datetime = NOON) -> sql.Values:
    return {"id": id, "time": time, "caller": caller, "cost": cost, "stream": True}


def test_named_parameters_and_values_mean_the_same_in_both_dialects(database: sql.Database) -> None:
    with database.transaction() as cursor:
        cursor.execute(INSERT, row(caller=":id 100% it's", cost=Decimal("0.000000000000000001")))
        assert cursor.rowcount == 1
        found = cursor.execute(
            "SELECT time, caller, cost_usd, ':id %' AS literal, stream FROM requests WHERE request_id = :id",
            {"id": "r"},
        ).fetchone()
    assert found is not None
    assert sql.as_moment(found[0]) == NOON
    assert sql.as_decimal(found[2]) == Decimal("0.000000000000000001")
    assert (found[1], found[3], bool(found[4])) == (":id 100% it's", ":id %", True)


def test_an_exception_rolls_everything_back(database: sql.Database) -> None:
    with pytest.raises(KeyboardInterrupt), database.transaction() as cursor:
        cursor.execute(INSERT, row())
        raise KeyboardInterrupt
    with database.snapshot() as cursor:
        assert cursor.execute("SELECT COUNT(*) FROM requests").fetchall() == [(0,)]


def test_a_broken_constraint_is_a_conflict_and_a_mistake_in_sql_stays_one(database: sql.Database) -> None:
    with pytest.raises(sql.Conflict), database.transaction() as cursor:
        cursor.executemany(INSERT, [row(), row()])
    with pytest.raises(Exception, match=r"no_such_table") as caught, database.transaction() as cursor:
        cursor.execute("SELECT * FROM no_such_table")
    assert database.dialect == "sqlite" or not isinstance(caught.value, sql.DatabaseUnusable)


def test_a_snapshot_sees_one_moment_and_blocks_no_writer(database: sql.Database) -> None:
    with database.snapshot() as reader:
        assert reader.execute("SELECT COUNT(*) FROM requests").fetchone() == (0,)
        with database.transaction() as writer:
            writer.execute(INSERT, row())
        assert reader.execute("SELECT COUNT(*) FROM requests").fetchone() == (0,)
    with database.snapshot() as reader:
        assert reader.execute("SELECT COUNT(*) FROM requests").fetchone() == (1,)


def test_what_the_dialects_spell_differently(database: sql.Database) -> None:
    of = database.expressions
    with database.transaction() as cursor:
        cursor.executemany(INSERT, [row(str(n), cost=Decimal("0.1"), time=NOON + timedelta(days=n)) for n in range(3)])
        cursor.execute("UPDATE requests SET tags = :tags", {"tags": '{"team": "é", "x": "1"}'})
        assert cursor.execute(
            f"SELECT {of.day('time')} AS day, {of.hour('time')} AS hour FROM requests ORDER BY time"
        ).documents()[1] == {"day": "2026-02-01", "hour": "2026-02-01T12"}
        (total, epoch) = cursor.execute(
            f"SELECT {of.decimal_sum('cost_usd')}, MIN({of.epoch('time')}) FROM requests"
        ).fetchall()[0]
        assert sql.as_decimal(total) == Decimal("0.3")
        assert epoch == pytest.approx(NOON.timestamp(), abs=0.001)
        pairs = cursor.execute(
            f"SELECT tag.key, tag.value FROM requests, {of.tag_pairs('tags')} WHERE request_id = '0' ORDER BY 1"
        ).fetchall()
        assert pairs == [("team", "é"), ("x", "1")]


def test_threads_work_at_once_each_in_a_transaction_of_its_own(database: sql.Database) -> None:
    def work(number: int) -> None:
        for each in range(10):
            with database.transaction() as cursor:
                cursor.execute(INSERT, row(f"{number}-{each}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.snapshot() as cursor:
        assert cursor.execute("SELECT COUNT(*) FROM requests").fetchone() == (60,)


MIGRATOR = """
import sys
from inference_service import sql
database = sql.open(sys.argv[1])
sys.stdin.readline()
with database.snapshot() as cursor:
    cursor.execute("SELECT COUNT(*) FROM request_bodies")
"""


def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATOR, database_url],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 6


def test_a_restarted_server_costs_no_transaction(postgresql: PostgresqlServer) -> None:
    database = sql.open(postgresql.new_database())
    with database.transaction() as cursor:
        cursor.execute(INSERT, row())
    with postgresql.outage(), pytest.raises(sql.DatabaseUnusable) as caught, database.transaction():
        pass
    assert caught.value.type == "database_unusable"
    assert "psql" in caught.value.fix
    with database.transaction() as cursor:
        assert cursor.execute("SELECT COUNT(*) FROM requests").fetchone() == (1,)
    database.close()


def test_a_password_is_in_no_message(postgresql: PostgresqlServer) -> None:
    url = f"postgresql://nobody:planted%2Fsecret@127.0.0.1:{postgresql.port}/none?sslpassword=other-secret"
    database = sql.open(url)
    with pytest.raises(sql.DatabaseUnusable) as caught, database.transaction():
        pass
    told = f"{database.shown} {caught.value.document()}"
    assert "secret" not in told
    assert f"nobody@127.0.0.1:{postgresql.port}/none" in told


def test_a_user_without_rights_is_told_which(postgresql: PostgresqlServer) -> None:
    url = postgresql.new_database()
    name = url.rpartition("/")[2]
    postgresql.run_sql("CREATE ROLE powerless LOGIN", name)
    with pytest.raises(sql.DatabaseUnusable) as caught, sql.open(url.replace("postgres@", "powerless@")).transaction():
        pass
    assert "right to create tables" in caught.value.fix
    postgresql.run_sql("DROP ROLE powerless", name)

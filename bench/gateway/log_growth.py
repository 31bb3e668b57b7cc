"""What a million requests do to the log: bytes per row, and how long reports on them take.

Rows are stored as the gateway stores them, in SQLite, and in PostgreSQL where one can be started here (as root, from
Debian's package). Growth is compared with the rows' journal lines, the time of a report with one scan of the same table
by the database itself (`SELECT caller, COUNT(*), SUM(output_tokens) … GROUP BY caller`).

    python bench/gateway/log_growth.py             about 4 min
    python bench/gateway/log_growth.py 100000      with fewer rows
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

from prepared import SKILL

sys.path[:0] = [str(SKILL / "tests")]

import orjson  # noqa: E402
import postgresql_server  # noqa: E402
import pytest  # noqa: E402

from inference_service import sql  # noqa: E402
from inference_service.gateway.dashboard import data  # noqa: E402
from inference_service.request_log import inserting, report  # noqa: E402
from inference_service.request_log.rows import RequestRow  # noqa: E402
from inference_service.request_log.stored_rows import values_of  # noqa: E402

DAYS = 30
BATCH = 500
SCAN = "SELECT caller, COUNT(*), SUM(output_tokens) FROM requests GROUP BY caller"


@dataclass(frozen=True)
class Entry:
    """A row as the recorder hands it over."""

    row: RequestRow
    values: tuple[object, ...]


def rows(count: int, now: float) -> Iterator[RequestRow]:
    """Requests of the last DAYS days: 40 callers, 6 models, one in twenty refused, one in ten with tags."""
    chance = random.Random(1)
    for number in range(count):
        refused = chance.random() < 0.05
        input_tokens, output_tokens = chance.randrange(20, 20_000), chance.randrange(1, 2_000)
        seconds = chance.lognormvariate(0, 1)
        yield RequestRow(
            request_id=f"req_0123456789abcdef{number:012x}",
            time=now - DAYS * 86_400 * (1 - number / count),
            route="/v1/messages" if number % 2 else "/v1/chat/completions",
            caller=f"caller-{number % 40}",
            caller_id=f"{number % 40:016x}",
            team=f"team-{number % 7}",
            tags={"feature": f"f{number % 9}"} if number % 10 == 0 else {},
            network_arch="claude",
            model=f"claude-model-{number % 6}",
            stream=number % 3 == 0,
            http_status=429 if refused else 200,
            error_type="rate_limited_requests" if refused else None,
            queue_seconds=0.0,
            connect_seconds=0.0,
            first_byte_seconds=seconds / 4,
            first_token_seconds=seconds / 3,
            total_seconds=seconds,
            overhead_seconds=0.0002,
            input_tokens=0 if refused else input_tokens,
            output_tokens=0 if refused else output_tokens,
            cached_tokens=0,
            cache_write_5m_tokens=0,
            cache_write_1h_tokens=0,
            cost_usd=Decimal(0) if refused else Decimal(input_tokens * 3 + output_tokens * 15) / 1_000_000,
            priced_by="not_sent" if refused else "tokens:claude-model@2026-01-01",
            upstream_request_id=f"req_up{number:018x}",
            request_bytes=4 * input_tokens,
            response_bytes=5 * output_tokens,
            gateway="gateway-1-0a1b2c3d",
        )


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes, the best of two: the first reads the file into memory."""
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def measure(name: str, database: sql.Database, size: Callable[[], int], count: int) -> dict[str, object]:
    """Fill the database and ask it."""
    with database.snapshot():
        pass
    empty = size()
    now = time.time()
    journal_bytes = 0
    cpu = time.process_time()
    batch: list[Entry] = []
    for row in rows(count, now):
        values = values_of(row)
        journal_bytes += len(orjson.dumps(values)) + 10
        batch.append(Entry(row, values))
        if len(batch) == BATCH:
            inserting.insert(database, batch, lambda cursor, new: None)
            batch.clear()
    cpu = time.process_time() - cpu
    grown = size() - empty

    def scan() -> None:
        with database.snapshot() as cursor:
            list(cursor.execute(SCAN))

    since = datetime.now(timezone.utc) - timedelta(days=1)
    times = {
        "scan": seconds_of(scan),
        "report_all": seconds_of(lambda: report.usage(database)),
        "report_day": seconds_of(lambda: report.usage(database, since=since)),
        "dashboard_day": seconds_of(lambda: data.document(database, {}, [], time.time())),
    }
    print(f"\n{name}: {count:,} rows, {grown / 1e6:,.0f} MB: {grown / count:.0f} bytes a row,")
    print(f"  x{grown / journal_bytes:.2f} of their journal lines; {1e6 * cpu / count:.1f} us of our CPU a row")
    for what, seconds in times.items():
        print(f"  {what:<14} {seconds:7.3f} s   x{seconds / times['scan']:.2f} of one scan")
    return {
        "database": name,
        "rows": count,
        "bytes_per_row": round(grown / count, 1),
        "of_journal": round(grown / journal_bytes, 3),
        "cpu_us_per_row": round(1e6 * cpu / count, 2),
        **{f"{what}_seconds": round(seconds, 4) for what, seconds in times.items()},
        "report_all_of_scan": round(times["report_all"] / times["scan"], 2),
    }


def main() -> None:
    """Print the figures, and the same as one JSON line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    figures = []
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        file = Path(name) / "requests.db"

        def sqlite_size() -> int:
            with contextlib.closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return file.stat().st_size

        figures.append(measure("SQLite", sql.open(f"sqlite:///{file}"), sqlite_size, count))
        with contextlib.ExitStack() as running:
            try:
                server = running.enter_context(postgresql_server.postgresql_server())
            except pytest.skip.Exception as reason:
                print(f"\nPostgreSQL is left out: {reason}")
            else:
                database = sql.open(server.new_database())

                def postgresql_size() -> int:
                    with database.snapshot() as cursor:
                        ((size,),) = cursor.execute("SELECT pg_database_size(current_database())")
                        return int(size)

                figures.append(measure("PostgreSQL", database, postgresql_size, count))
    print(json.dumps({"bench": "gateway_log_growth", "databases": figures}))


if __name__ == "__main__":
    main()

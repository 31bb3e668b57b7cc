"""The dashboard's document over real databases of both dialects: what it counts, what filters take, what is kept."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import dashboard_log
import pytest
from postgresql_server import PostgresqlServer, postgresql_server

from inference_service import sql
from inference_service.errors import BadInput
from inference_service.gateway import dashboard
from inference_service.gateway.answers import Request
from inference_service.gateway.dashboard import data, view
from inference_service.gateway.dashboard.counting import Counter

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sql.Database]:
    if request.param == "sqlite":
        url = sql.sqlite_url(tmp_path / "requests.db")
    else:
        url = request.getfixturevalue("postgresql").new_database()
    opened = sql.open(url)
    yield opened
    opened.close()


def put(database: sql.Database, *rows: dict[str, Any]) -> None:
    with database.transaction() as cursor:
        for number, given in enumerate(rows):
            row: dict[str, Any] = {
                "request_id": f"r{time.perf_counter_ns()}{number}",
                "caller": "alice",
                "team": "search",
                "network_arch": "claude",
                "model": "claude-sonnet-5-5",
                "route": "/v1/messages",
                "http_status": 200,
                "error_type": None,
                "total_seconds": 1.0,
                "input_tokens": 100,
                "output_tokens": 10,
                "cost_usd": Decimal("0.001"),
                **given,
            }
            ago = row.pop("ago", 60.0)
            row["time"] = datetime.fromtimestamp(NOW - ago, timezone.utc)
            names = ", ".join(row)
            cursor.execute(f"INSERT INTO requests ({names}) VALUES ({', '.join(f':{name}' for name in row)})", row)


def shown(database: sql.Database, **query: str) -> dict[str, Any]:
    return data.document(database, query, (), NOW)


def test_an_empty_log_gives_an_empty_document(database: sql.Database) -> None:
    document = shown(database)
    assert document["totals"]["requests"] == 0
    assert document["totals"]["p50"] is None
    assert document["series"]["spend"] == []
    assert len(document["series"]["requests"]) <= view.MOST_BUCKETS + 1
    json.dumps(document)


def test_everything_adds_up(database: sql.Database) -> None:
    put(
        database,
        {},
        {"caller": "bob", "team": None, "cost_usd": Decimal("0.25"), "input_tokens": 7, "output_tokens": None},
        {"http_status": 429, "error_type": "budget_day", "cost_usd": Decimal(0), "input_tokens": None},
        {"http_status": 500, "cost_usd": Decimal(0), "output_tokens": None, "input_tokens": None},
        {"model": "new-model", "cost_usd": None},
        {"ago": 90_000.0},
        {"usage_estimated": True, "error_type": "client_disconnected"},
    )
    document = shown(database)
    totals = document["totals"]
    assert totals["requests"] == 6
    assert totals["errors"] == 3
    assert totals["unpriced"] == 1
    assert totals["estimated"] == 1
    assert totals["cost_usd"] == pytest.approx(0.252)
    assert totals["input_tokens"] == 307
    assert [row["caller"] for row in document["callers"]] == ["bob", "alice"]
    assert {row["error"]: row["requests"] for row in document["errors"]} == {
        "budget_day": 1,
        "http_500": 1,
        "client_disconnected": 1,
    }
    assert [row["model"] for row in document["unpriced"]] == ["new-model"]
    assert sum(map(sum, (series["values"] for series in document["series"]["spend"]))) == pytest.approx(0.252)
    assert sum(document["series"]["requests"]) == 6


@pytest.mark.parametrize(
    ("query", "requests"),
    [
        ({"caller": "bob"}, 1),
        ({"team": "search"}, 4),
        ({"model": "smollm2"}, 1),
        ({"route": "/v1/chat/completions"}, 1),
        ({"status": "ok"}, 3),
        ({"status": "error"}, 2),
        ({"status": "http_503"}, 1),
        ({"status": "overloaded"}, 1),
        ({"caller": "nobody"}, 0),
        ({"caller": "' OR TRUE --"}, 0),
        ({"range": "15m"}, 4),
        ({"since": "2026-09-21T14:00:00Z"}, 4),
        ({"since": "2026-09-21T12:00", "until": "2026-09-21T13:50Z"}, 1),
        ({"caller": "alice", "status": "ok", "model": "claude-sonnet-5-5"}, 1),
    ],
)
def test_filters_take_the_same_for_sums_and_for_latencies(
    database: sql.Database, query: dict[str, str], requests: int
) -> None:
    put(
        database,
        {"ago": 3000.0},
        {"caller": "bob", "team": None},
        {"model": "smollm2", "network_arch": "smollm2", "route": "/v1/chat/completions"},
        {"http_status": 503, "error_type": "overloaded"},
        {"http_status": 503},
    )
    counts = Counter(database).count(view.of_query(query, NOW), NOW)
    assert sum(bucket.total.requests for bucket in counts.buckets) == requests
    assert sum(number for each in counts.bins for bins in each.values() for number in bins.values()) == requests
    assert shown(database, **query)["totals"]["requests"] == requests


def test_what_was_not_answered_yet_is_no_failure(database: sql.Database) -> None:
    put(database, {"error_type": "unfinished", "http_status": None, "total_seconds": None, "cost_usd": None})
    put(database, {"error_type": "unfinished", "http_status": None, "input_tokens": None, "output_tokens": None})
    assert shown(database)["totals"]["errors"] == 0
    assert shown(database, status="ok")["totals"]["requests"] == 2


@pytest.mark.parametrize("latency", list(view.LATENCIES))
def test_percentiles_are_within_five_per_cent(database: sql.Database, latency: str) -> None:
    seconds = [0.0002 * 1.07**number for number in range(200)]
    put(database, *({view.LATENCIES[latency]: each} for each in seconds))
    document = shown(database, latency=latency)
    for percent in (50, 95, 99):
        true = seconds[-(-percent * len(seconds) // 100) - 1]
        assert document["totals"][f"p{percent}"] == pytest.approx(true, rel=0.051)
        assert document["routes"][0][f"p{percent}"] == pytest.approx(true, rel=0.051)


def test_latencies_beyond_all_bins_and_of_nothing_are_counted(database: sql.Database) -> None:
    put(database, {"total_seconds": 0.0}, {"total_seconds": 1e6}, {"total_seconds": -0.001})
    counts = Counter(database).count(view.of_query({}, NOW), NOW)
    assert sum(number for each in counts.bins for bins in each.values() for number in bins.values()) == 3


def test_small_callers_are_added_up_without_losing_any(database: sql.Database) -> None:
    put(database, *({"caller": f"caller-{number}", "cost_usd": Decimal(number)} for number in range(1, 20)))
    spend = shown(database)["series"]["spend"]
    assert [series["name"] for series in spend] == [*(f"caller-{number}" for number in range(19, 14, -1)), None]
    assert spend[-1]["count"] == 14
    assert sum(map(sum, (series["values"] for series in spend))) == sum(range(1, 20))


def test_the_model_of_a_request_that_was_never_routed_is_not_shown(database: sql.Database) -> None:
    put(database, {"network_arch": "", "model": "sk-ant-pasted", "http_status": 404, "error_type": "unknown_model"})
    assert "sk-ant-pasted" not in json.dumps(shown(database))


def test_budgets_show_what_is_left(database: sql.Database) -> None:
    spent = [{"caller": "a", "cost_usd": Decimal("7.5"), "time": datetime.fromtimestamp(NOW - 60, timezone.utc)}]
    dashboard_log.add_caller(database, "a", "search", 10, 100, NOW, spent)
    dashboard_log.add_caller(database, "b", "ads", 5, None, NOW)
    budgets = shown(database)["budgets"]
    assert [(budget["caller"], budget["window"], budget["left_usd"]) for budget in budgets] == [
        ("a", "day", 2.5),
        ("a", "month", 92.5),
        ("b", "day", 5.0),
    ]
    assert budgets[0]["used_share"] == 0.75
    assert budgets[0]["resets_at"] == 1_790_035_200  # the next midnight
    assert [budget["caller"] for budget in shown(database, team="ads")["budgets"]] == ["b"]


def test_live_requests_are_filtered_by_what_is_known_of_them(database: sql.Database) -> None:
    live = [
        {"request_id": "1", "caller": "alice", "seconds": 1.0},
        {"request_id": "2", "caller": "bob", "seconds": 0.5},
    ]
    document = data.document(database, {"caller": "bob", "status": "error"}, live, NOW)
    assert [request["request_id"] for request in document["live"]] == ["2"]


def test_a_row_that_arrives_late_is_counted(database: sql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, asked = Counter(database), view.of_query({}, NOW)

    def total() -> int:
        return sum(bucket.total.requests for bucket in counter.count(asked, NOW).buckets)

    put(database, {"ago": 7200.0}, {"ago": 10.0})
    assert total() == 2
    put(database, {"ago": 7200.0})
    put(database, {"ago": 10.0})
    # The bucket that is not over is counted anew at once, the old one when it is looked at again.
    assert total() == 3
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 3600)
    assert total() == 4


@pytest.mark.parametrize(
    "query",
    [
        {"range": "1y"},
        {"since": "yesterday"},
        {"since": "2026-09-20", "until": "2026-09-19"},
        {"since": "1970-01-01"},
        {"since": "0001-01-01"},
        {"latency": "total_seconds; DROP TABLE requests"},
    ],
)
def test_a_view_that_there_is_not_is_refused(database: sql.Database, query: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        shown(database, **query)


@pytest.mark.parametrize("name", view.RANGES)
def test_every_range_has_few_buckets_that_cover_it(name: str) -> None:
    asked = view.of_query({"range": name}, NOW)
    assert 60 <= len(asked.buckets) <= view.MOST_BUCKETS + 1
    assert asked.since <= NOW - view.RANGES[name] < asked.since + asked.bucket_seconds
    assert asked.until - asked.bucket_seconds < NOW <= asked.until


def test_an_answer_is_json_that_nobody_keeps(database: sql.Database) -> None:
    answer = asyncio.run(dashboard.respond(database, Request("GET", "/dashboard/data", "range=1h", {}), []))
    assert answer.status == 200
    assert (b"cache-control", b"no-store") in answer.headers
    assert json.loads(answer.body)["bucket_seconds"] == 30
    refused = asyncio.run(dashboard.respond(database, Request("GET", "/dashboard/data", "range=no", {}), []))
    assert refused.status == 400
    assert json.loads(refused.body)["error"]["type"] == "invalid_range"


def test_few_are_counted_for_at_once_and_the_loop_goes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = sql.open(sql.sqlite_url(tmp_path / "requests.db"))
    gate = threading.Event()

    def slow(*_: Any) -> dict[str, Any]:
        gate.wait(30)
        return {}

    monkeypatch.setattr(data, "document", slow)

    async def crowd() -> list[int]:
        asked = Request("GET", "/dashboard/data", "", {})
        tasks = [asyncio.create_task(dashboard.respond(database, asked, [])) for _ in range(10)]
        gone = tasks.pop()
        while sum(task.done() for task in tasks) < 1:
            await asyncio.sleep(0.01)
        gone.cancel()
        gate.set()
        return sorted([(await task).status for task in tasks])

    assert asyncio.run(crowd()) == [200] * 8 + [503]
    monkeypatch.undo()
    assert asyncio.run(dashboard.respond(database, Request("GET", "/", "", {}), [])).status == 200


def test_a_database_that_is_away_is_503_and_says_so(postgresql: PostgresqlServer) -> None:
    database = sql.open(postgresql.new_database().replace(str(postgresql.port), "9"))
    answer = asyncio.run(dashboard.respond(database, Request("GET", "/dashboard/data", "", {}), []))
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["type"] == "database_unusable"


def test_a_view_that_was_just_counted_costs_little(tmp_path: Path) -> None:
    database = sql.open(sql.sqlite_url(tmp_path / "requests.db"))
    dashboard_log.fill(database, 30_000, days=1, now=NOW)
    first = shown(database)
    assert first["totals"]["requests"] > 29_000
    begun = time.process_time()
    again = shown(database)
    # Measured 0.01 s, and 0.3 s for the first.
    assert time.process_time() - begun < 0.15
    assert again == first

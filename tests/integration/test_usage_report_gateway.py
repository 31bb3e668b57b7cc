"""The usage report over the gateway's rows, invoices and forgetting: the same answers from both databases."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support import run_script

from inference_service import sql
from inference_service.contracts import ServiceEntry
from inference_service.errors import BadInput
from inference_service.registry import Registry
from inference_service.request_log import inserting, invoice, reconciliation, report, retention
from inference_service.request_log.rows import RequestRow
from inference_service.request_log.stored_rows import Values, values_of

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
ROW = RequestRow(
    request_id="r",
    time=NOON.timestamp(),
    route="/v1/messages",
    caller="ana",
    team="search",
    project="web",
    network_arch="claude",
    model="claude-haiku-4-5",
    platform="anthropic",
    http_status=200,
    total_seconds=1.0,
    input_tokens=100,
    output_tokens=10,
    cached_tokens=40,
    cache_write_5m_tokens=20,
    cache_write_1h_tokens=10,
    cost_usd=Decimal("0.01"),
    priced_by="tokens",
)


@dataclass
class Entry:
    values: Values
    row: RequestRow


def store(database: sql.Database, rows: Sequence[RequestRow]) -> None:
    rows = [replace(row, request_id=f"{row.request_id}-{number}") for number, row in enumerate(rows)]
    inserting.insert(database, [Entry(values_of(row), row) for row in rows], lambda cursor, new: None)


def groups(database: sql.Database, *by: str, since: datetime | None = None) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = report.usage(database, by, since)
    return {tuple(group[name] for name in by): group for group in found.groups}


def test_each_dimension_makes_its_groups(database: sql.Database) -> None:
    store(
        database,
        [
            ROW,
            replace(ROW, team=None, project="app", model="claude-sonnet-5", route="/v1/chat/completions"),
            replace(ROW, time=ROW.time + 13 * 3600, error_type="overloaded", http_status=529, platform=None),
        ],
    )

    def counts(*by: str) -> dict[tuple[Any, ...], int]:
        return {key: group["requests"] for key, group in groups(database, *by).items()}

    assert counts("team") == {("search",): 2, (None,): 1}
    assert counts("project") == {("web",): 2, ("app",): 1}
    assert counts("model") == {("claude-haiku-4-5",): 2, ("claude-sonnet-5",): 1}
    assert counts("route") == {("/v1/messages",): 2, ("/v1/chat/completions",): 1}
    assert counts("platform") == {("anthropic",): 2, (None,): 1}
    assert counts("error_type") == {(None,): 2, ("overloaded",): 1}
    assert counts("day") == {("2026-01-31",): 2, ("2026-02-01",): 1}
    assert counts("hour", "team") == {
        ("2026-01-31T12", "search"): 1,
        ("2026-01-31T12", None): 1,
        ("2026-02-01T01", "search"): 1,
    }
    assert [next(iter(group.values())) for group in report.usage(database, ["team"]).groups] == ["search", None]


def test_a_request_with_two_tags_is_in_two_groups_and_in_the_total_once(database: sql.Database) -> None:
    store(database, [replace(ROW, tags={"feature": "é=1", "tier": "gold"}), replace(ROW, tags={"tier": "gold"}), ROW])
    found = report.usage(database, ["tag", "caller"])
    assert {(group["tag"], group["caller"]): group["requests"] for group in found.groups} == {
        ("tier=gold", "ana"): 2,
        ("feature=é=1", "ana"): 1,
    }
    assert found.totals["requests"] == 3
    assert found.totals["cost_usd"] == "0.03"


def test_what_is_unknown_is_counted_and_the_models_without_a_price_are_named(database: sql.Database) -> None:
    unknown = replace(ROW, model="new-model", cost_usd=None, cached_tokens=None, usage_estimated=True)
    store(database, [ROW, unknown, unknown, replace(unknown, model=None, input_tokens=None, output_tokens=None)])
    found = report.usage(database, ["caller"])
    assert found.totals["unpriced"] == 3
    assert found.unpriced_models == ({"model": "new-model", "requests": 2}, {"model": None, "requests": 1})
    totals = {name: found.totals[name] for name in ("input_tokens", "cached_tokens", "unmetered", "estimated")}
    assert totals == {"input_tokens": 300, "cached_tokens": 40, "unmetered": 1, "estimated": 3}
    assert found.totals["cache_write_tokens"] == 120
    later = report.usage(database, ["caller"], NOON + timedelta(seconds=1))
    assert (later.totals["requests"], later.unpriced_models) == (0, ())


def test_money_and_percentiles_are_exact(database: sql.Database) -> None:
    seed = random.Random(7)
    rows = [
        replace(
            ROW,
            caller=seed.choice("abc"),
            total_seconds=seed.choice([None, seed.random() * 10]),
            cost_usd=Decimal(seed.randrange(10**18)).scaleb(-15),
        )
        for _ in range(500)
    ]
    store(database, rows)
    found = groups(database, "caller")
    for (caller,), group in found.items():
        mine = [row for row in rows if row.caller == caller]
        finished = sorted(row.total_seconds for row in mine if row.total_seconds is not None)
        for percent in (50, 95, 99):
            exact = finished[math.ceil(percent * len(finished) / 100) - 1]
            assert group[f"latency_p{percent}_seconds"] == exact
        assert Decimal(group["cost_usd"]) == sum(row.cost_usd for row in mine if row.cost_usd is not None)


def test_the_script_reports_from_a_database_url(database_url: str, database: sql.Database) -> None:
    store(database, [replace(ROW, tags={"tier": "gold"})] * 3)
    by_option = run_script("usage_report", "--database", database_url, "--by", "tag,day")
    assert [(group["tag"], group["day"], group["requests"]) for group in by_option.document["groups"]] == [
        ("tier=gold", "2026-01-31", 3)
    ]
    assert by_option.document["log"] == database_url
    by_variable = run_script("usage_report", "--by", "tag,day", env={"TAO_GATEWAY_DATABASE": database_url})
    assert by_variable.document == by_option.document
    assert by_option.document["gpus"] == []
    table = run_script("usage_report", "--database", database_url, "--by", "tag", "--format", "table").stdout
    assert "a request with several tags is in the group of each" in table


def test_what_gpus_cost_is_what_was_charged_and_what_stood_idle(
    database_url: str, database: sql.Database, tmp_path: Path
) -> None:
    began = datetime.now(timezone.utc) - timedelta(hours=2)
    Registry().write(ServiceEntry("job-1", "cosmos-rl", "brev", "http://h", num_gpus=2, started_at=began.isoformat()))
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "gpu_hour_prices:\n- {platform: brev, usd_per_gpu_hour: '1.50', effective_from: 2026-01-01, source: a test}\n"
    )
    gpu = replace(ROW, job_id="job-1", priced_by="gpu: 2 x 1.50", cost_usd=Decimal("0.25"), time=began.timestamp() + 60)
    store(database, [gpu, gpu, ROW, replace(gpu, time=began.timestamp() - 86400 * 3)])
    arguments = ("usage_report", "--database", database_url, "--since", "1d")
    environment = {"TAO_INF_PRICING": str(prices)}
    (line,) = run_script(*arguments, env=environment).document["gpus"]
    assert (line["job_id"], line["charged_usd"], line["unpriced_because"]) == ("job-1", "0.50", None)
    assert Decimal("6") <= Decimal(line["cost_usd"]) < Decimal("6.1")
    assert Decimal(line["idle_usd"]) == Decimal(line["cost_usd"]) - Decimal("0.50")
    table = run_script(*arguments, "--format", "table", env=environment).stdout
    assert line["cost_usd"][:4] in table


def test_a_registry_that_cannot_be_read_costs_no_report(database_url: str, tmp_path: Path) -> None:
    broken = tmp_path / "registry.json"
    broken.mkdir()
    done = run_script("usage_report", "--database", database_url, env={"TAO_INF_MS_STATE_FILE": str(broken)})
    assert done.document["gpus"] == []
    assert "what GPUs cost is not known" in done.stderr


def test_a_password_on_the_command_line_is_refused() -> None:
    url = "postgresql://ana:planted@db/usage"
    for arguments in (["--database", url], ["forget", "--older-than", "1d", "--database", url]):
        done = run_script("usage_report", *arguments, expect=2)
        assert done.document["error"]["type"] == "password_on_command_line"
        assert "planted" not in done.stdout + done.stderr


def test_a_database_that_is_not_there_is_an_error_with_a_fix() -> None:
    done = run_script("usage_report", "--database", "postgresql://ana@127.0.0.1:1/usage", expect=1)
    assert done.document["error"]["type"] == "database_unusable"
    assert "psql" in done.document["error"]["fix"]


USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count\n"
)
COST = "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type\n"


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "invoice.csv"
        file.write_text(text, encoding="utf-8-sig")
        return file

    return write


def reconciled(url: str, file: Path, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = run_script(
        "usage_report", "reconcile-invoice", str(file), "--database", url, *arguments
    ).document
    return document


def test_a_cost_export_that_says_the_same_matches(
    database_url: str, database: sql.Database, csv_file: Callable[[str], Path]
) -> None:
    dated = replace(ROW, model="claude-haiku-4-5-20251001")
    not_sent = replace(
        ROW, model="claude-opus-9", input_tokens=None, output_tokens=None, cost_usd=None, http_status=429
    )
    elsewhere = replace(ROW, network_arch="other", model="claude-haiku-4-5")
    store(database, [ROW, dated, not_sent, elsewhere, replace(ROW, time=ROW.time - 86400 * 9)])
    lines = COST
    for kind, usd in (("input_no_cache", "0.012"), ("output", "0.008")):
        lines += f"2026-01-31,Claude Haiku 4.5,Default,key,message,≤ 200k,{kind},{usd},{usd},token\n"
    lines += "2026-01-31,Claude Haiku 4.5,Default,key,message,,web_search,1.50,1.50,web_search\n"
    document = reconciled(database_url, csv_file(lines))
    assert document["matches"] is True
    assert (document["compared"], document["from"], document["to"]) == ("cost", "2026-01-31", "2026-01-31")
    (line,) = document["lines"]
    assert (line["model"], line["ours"]["requests"], line["ours"]["cost_usd"]) == ("claude-haiku-4-5", 2, "0.02")
    assert Decimal(line["difference"]["cost_usd"]) == 0
    assert document["totals"]["other_usd"] == "1.50"


def test_differences_are_listed_on_either_side_and_are_no_failure(
    database_url: str, database: sql.Database, csv_file: Callable[[str], Path]
) -> None:
    store(database, [ROW, replace(ROW, model="claude-opus-5", time=ROW.time + 86400), replace(ROW, cost_usd=None)])
    lines = COST + "2026-01-31,Claude Haiku 4.5,,,,,,0.035,,token\n2026-02-02,Claude Sonnet 5,,,,,,1,,token\n"
    document = reconciled(database_url, csv_file(lines))
    assert document["matches"] is False
    told = {
        (line["day"], line["model"]): (line["difference"]["cost_usd"], line["matches"]) for line in document["lines"]
    }
    assert told == {
        ("2026-01-31", "claude-haiku-4-5"): ("-0.025", False),
        ("2026-02-01", "claude-opus-5"): ("0.01", True),
        ("2026-02-02", "claude-sonnet-5"): ("-1", False),
    }
    assert document["unpriced"] == 1
    assert document["totals"]["difference_usd"] == "-1.015"
    wide = reconciled(database_url, csv_file(lines), "--tolerance", "1")
    assert wide["matches"] is True
    by_part = reconciled(database_url, csv_file(lines), "--tolerance", "72%")
    assert [line["matches"] for line in by_part["lines"]] == [True, False, False]


def test_a_usage_export_is_compared_by_each_kind_of_tokens(
    database_url: str, database: sql.Database, csv_file: Callable[[str], Path]
) -> None:
    store(database, [ROW, ROW])
    same = USAGE + "2026-01-31,claude-haiku-4-5-20251001,k,Default,standard,≤ 200k,60,40,20,80,20,0\n"
    assert reconciled(database_url, csv_file(same))["matches"] is True
    document = reconciled(database_url, csv_file(same.replace(",80,20,", ",80,21,")))
    assert document["compared"] == "tokens"
    assert document["lines"][0]["difference"]["output_tokens"] == -1
    assert document["matches"] is False
    assert (
        reconciled(database_url, csv_file(same.replace(",80,20,", ",80,21,")), "--tolerance", "5%")["matches"] is True
    )


@pytest.mark.parametrize(
    ("text", "type", "told"),
    [
        ("", "invoice_columns", "day and model"),
        ("a,b\n1,2\n", "invoice_columns", "it has a, b"),
        ("date,model\n", "invoice_columns", "cost or tokens"),
        ("date,model,cost\nyesterday,m,1\n", "invoice_line", "line 2: 'yesterday'"),
        ("date,model,cost\n2026-01-31,m,\n\n2026-01-31,m,NaN\n", "invoice_line", "line 4: 'NaN'"),
        ("date,model,cost\n2026-01-31,,1\n", "invoice_line", "no model"),
        ('date,model,cost\n2026-01-31,"m,1\n', "invoice_unreadable", "CSV"),
    ],
)
def test_a_file_that_is_no_invoice_is_refused_by_line(
    text: str, type: str, told: str, csv_file: Callable[[str], Path]
) -> None:
    with pytest.raises(BadInput) as caught:
        invoice.read(csv_file(text), invoice.vendor("anthropic"))
    assert caught.value.type == type
    assert told in caught.value.message


@pytest.mark.parametrize("text", ["", "-1", "1%%", "1e3", "NaN", "a"])
def test_a_tolerance_is_usd_or_a_percentage(text: str) -> None:
    with pytest.raises(BadInput):
        reconciliation.tolerance(text)


def test_an_unknown_vendor_is_refused(csv_file: Callable[[str], Path]) -> None:
    file = str(csv_file(COST))
    done = run_script("usage_report", "reconcile-invoice", file, "--vendor", "nobody", expect=2)
    assert "anthropic" in done.document["error"]["fix"]


def test_an_invoice_can_be_read_at_a_terminal(
    database_url: str, database: sql.Database, csv_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from inference_service.request_log import report_commands

    store(database, [ROW])
    for text in (COST + "2026-01-31,Claude Haiku 4.5,,,,,,5,,token\n", USAGE):
        report_commands.render(reconciled(database_url, csv_file(text)))
    told = capsys.readouterr().out
    assert "differs" in told
    assert "USD: ours 0.01, theirs 5, difference -4.99" in told
    assert "all within the tolerance" in told


def with_bodies(database: sql.Database, rows: Sequence[RequestRow]) -> None:
    store(database, rows)
    with database.transaction() as cursor:
        cursor.execute(
            "INSERT INTO request_bodies (request_id, time, request) SELECT request_id, time, 'b' FROM requests"
        )


def left(database: sql.Database) -> tuple[int, int]:
    with database.snapshot() as cursor:
        counts = [
            cursor.execute(f"SELECT COUNT(*) FROM {table}").fetchall()[0][0] for table in ("requests", "request_bodies")
        ]
    return counts[0], counts[1]


def test_forgetting_takes_what_is_older_and_counts_it_before(database_url: str, database: sql.Database) -> None:
    now = datetime.now(timezone.utc).timestamp()
    with_bodies(database, [replace(ROW, time=now - days * 86400) for days in (0, 5, 20, 99, 100)])
    forget = ("forget", "--database", database_url, "--older-than", "90d")
    counted = run_script("usage_report", *forget, "--dry-run").document
    assert (counted["requests"], counted["bodies"], counted["dry_run"]) == (2, 2, True)
    assert left(database) == (5, 5)
    done = run_script("usage_report", *forget, "--bodies-older-than", "7d").document
    assert (done["requests"], done["bodies"]) == (2, 3)
    assert left(database) == (3, 2)
    assert run_script("usage_report", *forget[:3], "--bodies-older-than", "1d").document["bodies"] == 1
    assert left(database) == (3, 1)


def test_forgetting_nothing_in_particular_is_refused() -> None:
    assert run_script("usage_report", "forget", expect=2).document["error"]["type"] == "usage"
    done = run_script("usage_report", "forget", "--older-than", "old", expect=2)
    assert "--older-than 'old'" in done.document["error"]["message"]


def test_writers_go_on_while_much_is_forgotten(database: sql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 20)
    store(database, [replace(ROW, time=ROW.time - 86400 * 90)] * 600)
    forgetting = threading.Thread(target=retention.forget, args=(database, NOON, None))
    forgetting.start()
    written = 0
    while forgetting.is_alive():
        store(database, [replace(ROW, request_id=f"new{written}", time=NOON.timestamp() + 60)])
        written += 1
    forgetting.join()
    assert written > 3
    assert left(database) == (written, 0)

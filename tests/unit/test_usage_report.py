"""The usage report's arithmetic: grouping, percentiles, money, times."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_service import request_log
from inference_service.errors import BadInput, ToolError
from inference_service.request_log import report
from inference_service.request_log.rows import LoggedRequest, Outcome

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def record(
    file: Path,
    outcomes: Sequence[Outcome | None],
    caller: str = "ana",
    job_id: str = "job-1",
    time: datetime = NOON,
    model: str | None = "m",
) -> None:
    """Add one row per outcome to the log; None leaves the request unfinished."""
    log = request_log.open(file)
    for number, outcome in enumerate(outcomes):
        request_id = f"{caller}/{job_id}/{time}/{model}/{number}"
        log.begin(LoggedRequest(request_id, time, caller, job_id, "arch", model, "local-docker", "/v1"))
        if outcome:
            log.finish(request_id, outcome)
    log.close()


def nearest_rank(values: Sequence[float], percent: int) -> float | None:
    """The definition, word for word."""
    ordered = sorted(values)
    return ordered[math.ceil(percent * len(ordered) / 100) - 1] if ordered else None


latencies = st.lists(st.floats(min_value=0, max_value=1e6, allow_nan=False, allow_subnormal=False), max_size=45)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["ana", "bo", "cy"]), st.tuples(latencies, st.integers(0, 3)), min_size=1))
def test_percentiles_are_nearest_rank_over_the_finished_requests(callers: dict[str, tuple[list[float], int]]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "log.db"
        for caller, (values, unfinished) in callers.items():
            record(file, [*map(Outcome, values), *[None] * unfinished], caller)
        found = report.usage(file, ["caller"])
    for group in found.groups:
        values, unfinished = callers[group["caller"]]
        assert group["latency_p50_seconds"] == nearest_rank(values, 50)
        assert group["latency_p95_seconds"] == nearest_rank(values, 95)
        assert (group["requests"], group["unfinished"]) == (len(values) + unfinished, unfinished)
    everything = [value for values, _ in callers.values() for value in values]
    assert found.totals["latency_p50_seconds"] == nearest_rank(everything, 50)
    assert found.totals["latency_p95_seconds"] == nearest_rank(everything, 95)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | st.decimals(min_value=0, max_value=10**9, places=12), max_size=20))
def test_money_is_added_exactly_and_what_is_unpriced_is_counted_not_added(costs: list[Decimal | None]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "log.db"
        record(file, [Outcome(1, cost_usd=cost) for cost in costs])
        totals = report.usage(file).totals
    priced = [cost for cost in costs if cost is not None]
    assert totals["unpriced"] == len(costs) - len(priced)
    assert totals["cost_usd"] == (format(sum(priced, Decimal(0)), "f") if priced else None)


def test_errors_unfinished_and_tokens_are_counted_apart(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    outcomes = [
        Outcome(1, 200, input_tokens=10, output_tokens=5),
        Outcome(1, 200, input_tokens=1, output_tokens=2, cached_tokens=4),
        Outcome(1, 200),
        Outcome(1, 500, "internal_error"),
        Outcome(1, None, "connection_failed"),
        Outcome(1, 503),
        None,
    ]
    record(file, outcomes)
    totals = report.usage(file).totals
    assert (totals["requests"], totals["errors"], totals["unfinished"]) == (7, 3, 1)
    assert (totals["input_tokens"], totals["output_tokens"], totals["cached_tokens"]) == (11, 7, 4)
    assert totals["unmetered"] == 5


def test_tokens_that_nobody_reported_are_unknown_not_zero(tmp_path: Path) -> None:
    record(tmp_path / "log.db", [Outcome(1, 200)])
    totals = report.usage(tmp_path / "log.db").totals
    assert (totals["input_tokens"], totals["output_tokens"], totals["cached_tokens"]) == (None, None, None)


def test_groups_are_those_of_the_dimensions_and_add_up_to_the_totals(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    record(file, [Outcome(1)] * 3, "ana", "job-1")
    record(file, [Outcome(1)] * 2, "ana", "job-2", NOON + timedelta(hours=13))
    record(file, [Outcome(1)] * 1, "bo", "job-2", model=None)

    def counts(*by: str) -> dict[tuple[str | None, ...], int]:
        groups = report.usage(file, by).groups
        return {tuple(group[name] for name in by): group["requests"] for group in groups}

    assert counts("caller") == {("ana",): 5, ("bo",): 1}
    assert counts("service") == {("job-1",): 3, ("job-2",): 3}
    assert counts("model") == {("m",): 5, (None,): 1}
    assert counts("day") == {("2026-01-31",): 4, ("2026-02-01",): 2}
    assert counts("caller", "service") == {("ana", "job-1"): 3, ("ana", "job-2"): 2, ("bo", "job-2"): 1}
    default = report.usage(file)
    assert default.by == ("caller", "service", "model")
    assert {group["network_arch"] for group in default.groups} == {"arch"}
    assert sum(group["requests"] for group in default.groups) == default.totals["requests"] == 6


def test_since_counts_from_that_moment_on(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    for hours in range(5):
        record(file, [Outcome(1)], time=NOON + timedelta(hours=hours))
    assert report.usage(file, since=NOON + timedelta(hours=3)).totals["requests"] == 2
    assert report.usage(file, since=NOON + timedelta(hours=3, microseconds=1)).totals["requests"] == 1


def test_without_a_log_the_report_is_empty_and_makes_no_file(tmp_path: Path) -> None:
    file = tmp_path / "none" / "log.db"
    found = report.usage(file)
    assert (found.groups, found.totals["requests"], found.totals["cost_usd"]) == ((), 0, None)
    assert not file.parent.exists()


def test_a_log_that_cannot_be_read_is_an_error_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(ToolError) as caught:
        report.usage(tmp_path / "log.db")
    assert caught.value.type == "request_log_unusable"
    assert caught.value.fix.startswith("mkdir -p ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", NOON - timedelta(minutes=30)),
        ("24h", NOON - timedelta(hours=24)),
        ("7d", NOON - timedelta(days=7)),
        ("0s", NOON),
        ("2w", NOON - timedelta(weeks=2)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=timezone.utc)),
        ("2026-01-30T08:00:00Z", datetime(2026, 1, 30, 8, tzinfo=timezone.utc)),
        ("2026-01-30T08:00:00+02:00", datetime(2026, 1, 30, 6, tzinfo=timezone.utc)),
        ("2026-01-30T08:00:00.500", datetime(2026, 1, 30, 8, 0, 0, 500_000, tzinfo=timezone.utc)),
    ],
)
def test_since_takes_durations_and_iso_times(text: str, expected: datetime) -> None:
    assert report.moment(text, NOON) == expected


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-7d", "7 d", "7y", "1.5h", "yesterday", "2026-13-01", "9" * 400 + "d", "²d", "99999999d"]
)
def test_since_refuses_everything_else(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        report.moment(text, NOON)
    assert caught.value.type == "invalid_since"


@given(st.text())
def test_since_never_fails_in_another_way(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert report.moment(text, NOON).tzinfo is not None


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ([], ("caller", "service", "model")),
        (["day"], ("day",)),
        (["model,caller"], ("model", "caller")),
        (["model", "day, model"], ("model", "day")),
    ],
)
def test_dimensions_may_be_repeated_or_separated_by_commas(named: list[str], expected: tuple[str, ...]) -> None:
    assert report.dimensions(named) == expected


@pytest.mark.parametrize("named", ["", "caller,", "arch", "caller;DROP TABLE requests"])
def test_an_unknown_dimension_is_refused_by_name(named: str) -> None:
    with pytest.raises(BadInput) as caught:
        report.dimensions([named])
    assert "--by caller,team,project,service,model,tag," in caught.value.fix

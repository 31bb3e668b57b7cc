"""usage_report.py's command line: formats, options, and an honest empty report."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from support import SCRIPTS, run_script

from inference_service import request_log

NASTY = ["ana", "=cmd()", "+1", "-1", "@x", 'quo"te, comma', "escape\x1b[31m", "line\nbreak", "[bold]markup"]


@pytest.fixture
def logged() -> None:
    log = request_log.open()
    for number, caller in enumerate(NASTY):
        request_id = f"r-{number}"
        now = datetime.now(timezone.utc)
        log.begin(request_log.LoggedRequest(request_id, now, caller, "job-1", "arch", "m", "local-docker", "/v1"))
        if number:
            priced = Decimal("0.10") if number == 1 else None
            log.finish(request_id, request_log.Outcome(number, 200, input_tokens=3, output_tokens=4, cost_usd=priced))
    log.close()


def on_a_terminal(*arguments: str) -> str:
    """What usage_report.py writes when its standard output is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(SCRIPTS / "usage_report.py"), *arguments]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, env={**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # Linux says "I/O error" when the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return written.decode()


@pytest.mark.usefixtures("logged")
def test_a_pipe_gets_one_json_document_per_caller_service_and_model() -> None:
    document = run_script("usage_report").document
    assert document["by"] == ["caller", "service", "model"]
    assert [group["caller"] for group in document["groups"]] == sorted(NASTY)
    totals = document["totals"]
    assert (totals["requests"], totals["errors"], totals["unfinished"]) == (len(NASTY), 0, 1)
    assert (totals["input_tokens"], totals["output_tokens"]) == (24, 32)
    assert (totals["latency_p50_seconds"], totals["latency_p95_seconds"]) == (4, 8)
    assert (totals["cost_usd"], totals["unpriced"]) == ("0.10", 8)


@pytest.mark.usefixtures("logged")
def test_a_terminal_gets_a_table_that_no_caller_name_can_break() -> None:
    written = on_a_terminal("--by", "caller")
    assert "p95" in written
    assert "8 of 9 requests are unpriced" in written
    assert "[bold]markup" in written
    assert r"escape\x1b[31m" in written
    assert "\x1b[31m" not in written
    assert "cached" not in written
    assert json.loads(on_a_terminal("--json"))["totals"]["requests"] == 9
    assert json.loads(on_a_terminal("--format", "json"))["totals"]["requests"] == 9


@pytest.mark.usefixtures("logged")
def test_csv_is_rfc_4180_and_starts_no_formula() -> None:
    text = run_script("usage_report", "--format", "csv", "--by", "caller").stdout
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {row["caller"] for row in table} == {
        "ana", "'=cmd()", "'+1", "'-1", "'@x", 'quo"te, comma', "escape\x1b[31m", "line\nbreak", "[bold]markup",
    }  # fmt: skip
    assert {row["requests"] for row in table} == {"1"}
    (first_line, _) = text.split("\n", 1)
    assert first_line.startswith("caller,requests,errors,unfinished,")


@pytest.mark.usefixtures("logged")
def test_a_table_can_be_piped_and_is_not_wrapped() -> None:
    written = run_script("usage_report", "--format", "table").stdout
    assert {"ana", "job-1", "local-docker"} <= {line.split()[0] for line in written.splitlines() if line.strip()}


def test_no_log_yet_is_an_empty_report_that_says_so(tmp_path: Path) -> None:
    file = tmp_path / "none.db"
    done = run_script("usage_report", env={"TAO_INF_REQUEST_LOG": str(file)})
    assert (done.document["groups"], done.document["totals"]["requests"]) == ([], 0)
    assert f"no requests are logged in {file}" in done.stderr
    assert not file.exists()


@pytest.mark.usefixtures("logged")
def test_since_limits_the_report() -> None:
    assert run_script("usage_report", "--since", "1h").document["totals"]["requests"] == 9
    done = run_script("usage_report", "--since", "2999-01-01")
    assert done.document["totals"]["requests"] == 0
    assert "since 2999-01-01T00:00:00.000000Z" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "type"),
    [
        (["--since", "soon"], "invalid_since"),
        (["--by", "colour"], "unknown_dimension"),
        (["--format", "xml"], "usage"),
        (["--json", "--format", "csv"], "usage"),
        (["surplus"], "usage"),
    ],
)
def test_bad_options_are_refused_by_name(arguments: list[str], type: str) -> None:
    assert run_script("usage_report", *arguments, expect=2).document["error"]["type"] == type


def test_a_corrupt_log_is_an_error_with_a_fix(tmp_path: Path) -> None:
    file = tmp_path / "bad.db"
    file.write_bytes(b"garbage" * 1000)
    error = run_script("usage_report", env={"TAO_INF_REQUEST_LOG": str(file)}, expect=1).document["error"]
    assert error["type"] == "request_log_unusable"
    assert str(file) in error["fix"]

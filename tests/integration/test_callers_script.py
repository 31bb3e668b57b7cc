"""callers.py as a user runs it: keys shown once, names and limits refused early, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support import SCRIPTS, Result, check_output, run_script

from inference_service import sql
from inference_service.callers import directory, keys
from inference_service.callers.caller import Caller


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def callers(url: str, *arguments: str, expect: int | None = 0) -> Result:
    return run_script("callers", *arguments, env={"TAO_GATEWAY_DATABASE": url}, expect=expect)


def who(url: str, api_key: str) -> Caller | None:
    database = sql.open(url)
    copy = directory.load(database, -1)
    database.close()
    assert copy is not None
    known = directory.Directory()
    known.replace(copy)
    return known.authenticate(api_key.encode())


def test_a_caller_from_its_first_key_to_its_removal(url: str) -> None:
    added = callers(
        url,
        *("add", "web", "--team", "search", "--project", "ranking", "--usd-per-day", "2.50"),
        *("--allow-model", "smollm2", "--allow-model", "claude-haiku-4-5"),
    ).document
    (caller,) = added["callers"]
    assert (caller["team"], caller["project"], caller["admin"], caller["disabled"]) == (
        "search",
        "ranking",
        False,
        False,
    )
    assert caller["limits"] == {
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "usd_per_day": "2.5",
        "usd_per_month": None,
    }
    assert caller["allowed_models"] == ["claude-haiku-4-5", "smollm2"]
    key = added["api_key"]
    found = who(url, key)
    assert found is not None
    assert (found.name, found.limits.nano_usd_per_day) == ("web", 2_500_000_000)

    changed = callers(
        url, "limits", "web", "--requests-per-minute", "60", "--usd-per-day", "none", "--allow-any-model"
    ).document["callers"][0]
    assert changed["limits"]["requests_per_minute"] == 60
    assert changed["limits"]["usd_per_day"] is None
    assert changed["allowed_models"] is None

    rotated = callers(url, "rotate", "web", "--grace", "24h").document
    assert who(url, key) is not None
    assert who(url, rotated["api_key"]) is not None
    old, new = rotated["callers"][0]["keys"]
    assert old["expires_at"] is not None
    assert new["expires_at"] is None
    last = callers(url, "rotate", "web").document["api_key"]
    assert who(url, key) is None
    assert who(url, rotated["api_key"]) is None
    assert who(url, last) is not None

    assert callers(url, "disable", "web").document["callers"][0]["disabled"] is True
    assert who(url, last) is None
    assert callers(url, "enable", "web").document["callers"][0]["disabled"] is False
    assert who(url, last) is not None

    callers(url, "remove", "web")
    assert who(url, last) is None
    assert callers(url, "list").document["callers"] == []


def test_a_grace_does_not_prolong_what_already_ends(url: str) -> None:
    callers(url, "add", "web")
    callers(url, "rotate", "web", "--grace", "1h")
    first, second, third = callers(url, "rotate", "web", "--grace", "2d").document["callers"][0]["keys"]
    assert first["expires_at"] < second["expires_at"]
    assert third["expires_at"] is None


def test_of_several_that_add_one_name_at_once_one_wins(url: str) -> None:
    callers(url, "list")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPTS / "callers.py"), "add", "web", "--database", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = []
    for process in processes:
        text, _ = process.communicate(timeout=60)
        document = json.loads(text)
        check_output("callers", process.returncode, document)
        answers.append((process.returncode, document))
    (winner,) = [document for status, document in answers if status == 0]
    losers = [document["error"] for status, document in answers if status == 2]
    assert [error["type"] for error in losers] == ["caller_exists"] * 3
    assert "rotate web" in losers[0]["fix"]
    assert who(url, winner["api_key"]) is not None


@pytest.mark.parametrize("command", ["rotate", "disable", "enable", "remove"])
def test_a_caller_that_is_not_there_is_said_to_be_unknown(url: str, command: str) -> None:
    error = callers(url, command, "nobody", expect=2).document["error"]
    assert error["type"] == "unknown_caller"
    assert "nobody" in error["message"]
    assert "callers.py list" in error["fix"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", ""),
        ("add", ".hidden"),
        ("add", "two words"),
        ("add", "x" * 65),
        ("add", "tab\t"),
        ("add", "Anonymous"),
        ("add", "web", "--team", "\x1b[31mred"),
        ("add", "web", "--project", " "),
        ("add", "web", "--requests-per-minute", "0"),
        ("add", "web", "--requests-per-minute", "1.5"),
        ("add", "web", "--tokens-per-minute", "1_000"),
        ("add", "web", "--tokens-per-minute=-5"),
        ("add", "web", "--usd-per-day", "1e3"),
        ("add", "web", "--usd-per-day", "NaN"),
        ("add", "web", "--usd-per-month", "0.0000000001"),
        ("add", "web", "--usd-per-month", "9999999999"),
        ("add", "web", "--allow-model", ""),
        ("add", "web", "--allow-model", "m", "--allow-any-model"),
        ("limits", "web"),
        ("rotate", "web", "--grace", "soon"),
        ("rotate", "web", "--grace", "91d"),
        ("add", "web", "--database", "postgresql://gateway:hunter2@localhost/usage"),
        ("add", "web", "--database", "mysql://localhost/usage"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(arguments: tuple[str, ...], tmp_path: Path) -> None:
    database = tmp_path / "callers.db"
    done = callers(sql.sqlite_url(database), *arguments, expect=2)
    assert done.document["error"]["fix"]
    assert "hunter2" not in done.stdout + done.stderr
    assert not database.exists()


def test_a_key_is_stored_nowhere_and_shown_once(tmp_path: Path) -> None:
    file = tmp_path / "callers.db"
    url = sql.sqlite_url(file)
    added = callers(url, "add", "web")
    secret = added.document["api_key"].rsplit("-", 1)[1]
    assert secret not in added.stderr
    assert secret not in callers(url, "list").stdout
    with sqlite3.connect(file) as connection:
        dump = "\n".join(connection.iterdump())
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert added.document["callers"][0]["keys"][0]["key_id"] in dump
    assert keys.digest(added.document["api_key"].encode()).hex() in dump
    for stored in tmp_path.glob("callers.db*"):
        assert secret.encode() not in stored.read_bytes()


def test_without_a_url_the_callers_are_in_the_request_logs_file(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "requests.db"
    done = run_script("callers", "add", "web", env={"TAO_INF_REQUEST_LOG": str(file)})
    assert done.document["database"] == sql.sqlite_url(file)
    assert file.exists()
    assert run_script("usage_report", env={"TAO_INF_REQUEST_LOG": str(file)}).document["groups"] == []


def test_a_database_that_does_not_answer_is_said_so(tmp_path: Path) -> None:
    error = callers("postgresql://gateway@127.0.0.1:1/usage", "list", expect=1).document["error"]
    assert error["type"] == "database_unusable"
    assert "127.0.0.1:1" in error["message"]


def test_on_a_terminal_the_key_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    url = sql.sqlite_url(tmp_path / "callers.db")
    ours, terminal = os.openpty()
    subprocess.run(
        [sys.executable, str(SCRIPTS / "callers.py"), "add", "web", "--usd-per-day", "5"],
        env={**os.environ, "TAO_GATEWAY_DATABASE": url, "COLUMNS": "40"},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        timeout=60,
        check=True,
    )
    os.close(terminal)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "web" in shown
    assert who(url, shown.strip().splitlines()[-1]) is not None

"""One line of JSON per request: what is in it, what is not, and what a reader that stands still costs."""

from __future__ import annotations

import asyncio
import json
import os
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eventually

from inference_service.gateway import json_log
from inference_service.gateway.json_log import JsonLog, line
from inference_service.gateway.redaction import Redactor
from inference_service.request_log.rows import RequestRow


def row(**given: Any) -> RequestRow:
    return RequestRow(**{"request_id": "r", "time": 1_700_000_000.25, "route": "/v1/messages", **given})


def plain(text: str) -> str:
    return text


def test_a_line_says_what_is_known_and_leaves_out_what_is_not() -> None:
    document = json.loads(line(row(caller="alice", http_status=200, cost_usd=Decimal("0.0000000001")), plain))
    assert document == {
        "event": "request",
        "time": "2023-11-14T22:13:20.250Z",
        "request_id": "r",
        "route": "/v1/messages",
        "caller": "alice",
        "http_status": 200,
        "cost_usd": "0.0000000001",
        "stream": False,
        "usage_estimated": False,
        "retries": 0,
    }


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_any_text_is_one_line_without_what_a_terminal_obeys(model: str, tags: dict[str, str]) -> None:
    written = line(row(model=model, tags=tags), plain)
    assert written.count(b"\n") == 1
    assert all(character >= " " for character in written.decode()[:-1])
    assert not set(written.decode()) & set("\x7f\x9b\u202e\u2028\u2066")
    document = json.loads(written)
    assert document.get("model", "") == model
    assert document.get("tags", {}) == tags


def test_half_a_surrogate_pair_is_escaped_and_loses_no_line() -> None:
    assert json.loads(line(row(model="a\ud800b"), plain))["model"] == "a\ud800b"


def test_secrets_in_what_a_client_chose_are_redacted() -> None:
    redact = Redactor({"ANTHROPIC_API_KEY": "the-gateways-own-key"}, values=["admin-secret"])
    written = line(
        row(
            model="sk-ant-api03-0123456789abcdef",
            tags={"key": "tao-Ab12Cd34-0123456789abcdefghij", "admin-secret": "x the-gateways-own-key y"},
            route="/v1/admin-secret",
        ),
        redact,
    )
    for secret in (b"0123456789abcdef", b"the-gateways-own-key", b"admin-secret"):
        assert secret not in written
    assert written.count(b"[redacted]") == 5


def test_the_lines_of_one_turn_are_written_together_and_in_order() -> None:
    reading, writing = os.pipe()

    async def turns() -> JsonLog:
        log = JsonLog(plain, writing)
        for number in range(50):
            log.observe(row(request_id=str(number)))
        await asyncio.sleep(0)
        return log

    log = asyncio.run(turns())
    log.close()
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert [json.loads(one)["request_id"] for one in lines] == [str(number) for number in range(50)]


def test_closing_writes_what_the_turn_has_not_handed_over_yet() -> None:
    reading, writing = os.pipe()

    async def last() -> None:
        log = JsonLog(plain, writing)
        log.observe(row())
        log.close()

    asyncio.run(last())
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert json.loads(lines.read())["event"] == "request"


def test_a_reader_that_stands_still_holds_up_nobody_and_is_told_what_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_log, "MOST_WAITING_BYTES", 100_000)
    reading, writing = os.pipe()
    count = 3000

    async def requests() -> tuple[JsonLog, float]:
        log = JsonLog(plain, writing)
        slowest = 0.0
        for _ in range(count):
            begun = time.perf_counter()
            log.observe(row(tags={"x": "y" * 200}))
            await asyncio.sleep(0)
            slowest = max(slowest, time.perf_counter() - begun)
        return log, slowest

    log, slowest = asyncio.run(requests())
    assert slowest < 1.0
    with os.fdopen(reading) as lines:
        arrived = dropped = 0
        for one in iter(lines.readline, ""):
            document = json.loads(one)
            if document["event"] == "log_lines_dropped":
                dropped += document["requests"]
            else:
                arrived += 1
            if arrived + dropped == count:
                break
        log.close()
    os.close(writing)
    assert dropped > 1000


def test_a_closed_reader_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)

    async def requests() -> JsonLog:
        log = JsonLog(plain, writing)
        for _ in range(3):
            log.observe(row())
            await asyncio.sleep(0)
        return log

    log = asyncio.run(requests())
    eventually(lambda: not log._waiting)
    log.close()
    os.close(writing)

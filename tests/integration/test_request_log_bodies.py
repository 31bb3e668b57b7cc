"""Stored bodies: cut, without secrets and media, and never in the way."""

from __future__ import annotations

import pytest
from postgresql_server import PostgresqlServer
from support import eventually

from inference_service import sql
from inference_service.request_log import bodies
from inference_service.request_log.bodies import BodyLog, stored_text


def stored(database: sql.Database) -> list[dict[str, object]]:
    with database.snapshot() as cursor:
        return cursor.execute("SELECT request_id, request, response FROM request_bodies ORDER BY 1").documents()


def test_both_bodies_are_stored_as_text_up_to_their_size(database: sql.Database) -> None:
    log = BodyLog(database, most_bytes=5)
    log.record("a", 1769850000.25, b"12345", "éé€".encode())
    log.record("b", 1769850000.25, b"123456789", b"")
    log.record("a", 1769850000.25, b"again", b"again")
    log.close()
    assert stored(database) == [
        {"request_id": "a", "request": "12345", "response": "éé\ufffd… [2 bytes more]"},
        {"request_id": "b", "request": "12345… [4 bytes more]", "response": None},
    ]
    with database.snapshot() as cursor:
        ((time,), _) = cursor.execute("SELECT time FROM request_bodies").fetchall()
    assert sql.as_moment(time).timestamp() == 1769850000.25
    assert log.dropped == 0


def test_secrets_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    keys = "hf_planted_secret sk-ant-api03-planted0123456789 tao-ab12cd34-planted0123456789 Bearer planted0123456789=="
    text = stored_text(f'{{"content": "look: {keys}!"}}'.encode(), 1_000)
    assert text is not None
    assert "planted" not in text
    assert text.startswith('{"content": "look: [redacted] [redacted] [redacted] [redacted]!"}')


def test_ordinary_words_stay() -> None:
    text = "a task-oriented risk-free tao-run-inference-service, bearer of news"
    assert stored_text(text.encode(), len(text)) == text


def test_media_are_shortened_to_their_beginning() -> None:
    body = b'{"url": "data:image/png;base64,' + b"iVBORw0KGgoAAAAN" + b"A" * 5_000 + b'=="}'
    assert stored_text(body, len(body)) == '{"url": "data:image/png;base64,iVBORw0KGgoAAAAN…"}'


def test_what_is_no_text_is_stored_all_the_same(database: sql.Database) -> None:
    log = BodyLog(database)
    log.record("a", 0.0, b"\0\xff\x80", b"\xed\xa0\x80")
    log.close()
    (row,) = stored(database)
    assert row["request"] == "\ufffd" * 3


def test_a_database_that_is_not_there_costs_bodies_at_the_worst(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bodies, "_WAITING_BYTES", 50)
    monkeypatch.setattr(bodies, "_RETRY_SECONDS", 0.05)
    database = sql.open(postgresql.new_database())
    log = BodyLog(database)
    with postgresql.outage():
        for number in range(10):
            log.record(str(number), 0.0, b"0123456789", b"")
        assert log.dropped == 5
    eventually(lambda: len(stored(database)) == 5)
    log.close()
    assert log.dropped == 5
    assert capsys.readouterr().err.count("dropped") == 1
    database.close()

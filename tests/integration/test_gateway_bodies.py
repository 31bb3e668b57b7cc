"""Bodies are kept where that was asked for, cut to a size and without secrets; nowhere else."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from doubles.openai_service import OpenAIService
from gateway_process import CHAT, Gateway, serving_gateway
from support import eventually


@contextlib.contextmanager
def keeping(folder: Path, *arguments: str) -> Iterator[Gateway]:
    with (
        OpenAIService("service-1") as service,
        serving_gateway(folder, services={"service-1": service.url}, arguments=arguments) as gateway,
    ):
        yield gateway


def ask(gateway: Gateway, prompt: str, **fields: Any) -> str:
    body = {"model": "service-1", "messages": [{"role": "user", "content": prompt}], **fields}
    headers = {"Authorization": f"Bearer {gateway.caller_key('app')}"}
    answer = requests.post(gateway.url + CHAT, json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"]


def kept(gateway: Gateway) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{gateway.database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM request_bodies")]


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_asked_and_answered_is_kept(tmp_path: Path, stream: bool) -> None:
    with keeping(tmp_path, "--log-bodies") as gateway:
        request_id = ask(gateway, "what is the capital of France", stream=stream)
        (row,) = eventually(lambda: kept(gateway), 15)
    assert row["request_id"] == request_id
    assert "what is the capital of France" in row["request"]
    assert ("data: " in row["response"]) is stream
    assert '"choices"' in row["response"]


def test_a_long_prompt_is_cut_and_says_how_much_is_missing(tmp_path: Path) -> None:
    with keeping(tmp_path, "--log-bodies") as gateway:
        ask(gateway, "a" * 3_000_000)
        (row,) = eventually(lambda: kept(gateway), 15)
    assert len(row["request"]) < 70_000
    assert row["request"].endswith(" bytes more]")


def test_a_key_in_a_prompt_is_not_kept(tmp_path: Path) -> None:
    secret = "sk-ant-api03-of-nobody-0123456789abcdef"
    with keeping(tmp_path, "--log-bodies") as gateway:
        ask(gateway, f"use {secret} for it, or {gateway.caller_key('app')}")
        (row,) = eventually(lambda: kept(gateway), 15)
        own = gateway.caller_key("app")
    assert secret not in row["request"] and own not in row["request"]
    assert "[redacted]" in row["request"]


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    with keeping(tmp_path) as gateway:
        request_id = ask(gateway, "nobody else's business")
        gateway.row(request_id)
        assert gateway.stop() == 0
        assert kept(gateway) == []
        everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"nobody else's business" not in everything

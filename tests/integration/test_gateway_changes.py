"""The gateway's own end, what changes around it while it runs, and the keys that it must not tell."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import yaml
from gateway_process import CHAT, MESSAGES, READINESS
from gateway_stack import CLAUDE, SERVICE, asking, gateway_stack, request_id_of, send
from raw_http import Answer, ask, connected, read_all, read_answer, read_until, request
from support import SKILL, eventually, run_script

# Its own end


def test_the_end_lets_streams_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    with gateway_stack(tmp_path / "ending") as stack, connected(stack.gateway.port) as kept:
        eventually(lambda: ask(stack.gateway.port, request("GET", READINESS)).status == 200)
        kept.sendall(request("GET", READINESS))
        assert read_answer(kept).status == 200
        with connected(stack.gateway.port) as connection:
            data = asking(stack, MESSAGES, CLAUDE, "on [[words=40; token_delay=0.05]]", stream=True)
            connection.sendall(data)
            began = read_until(connection, b"word2")
            os.kill(stack.gateway.pid, signal.SIGTERM)
            eventually(lambda: _not_ready(kept), timeout=2)
            eventually(lambda: _refused(stack.gateway.port), timeout=2)
            whole = read_answer(connection, began)
        assert whole.complete and b"word39" in whole.body and b"message_stop" in whole.body
        assert stack.gateway.stop() == 0
        assert stack.gateway.row(whole.headers["x-request-id"])["error_type"] is None


def test_the_end_cuts_what_takes_too_long_but_not_its_row(tmp_path: Path) -> None:
    with gateway_stack(tmp_path / "ending", arguments=["--drain", "0.5"]) as stack:
        with connected(stack.gateway.port) as connection:
            data = asking(stack, MESSAGES, CLAUDE, "on [[words=400; token_delay=0.05]]", stream=True)
            connection.sendall(data)
            began = read_until(connection, b"word2")
            assert stack.gateway.stop(timeout=10) == 0
            assert b"message_stop" not in read_all(connection)
        row = stack.gateway.row(request_id_of(began))
        assert row["error_type"] == "draining" and row["output_tokens"] > 0 and Decimal(row["cost_usd"]) > 0


# What changes around it


def test_callers_services_and_prices_are_taken_over_while_it_runs(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text((SKILL / "references" / "pricing.yaml").read_text())
    with gateway_stack(tmp_path / "reload", env={"TAO_INF_PRICING": str(prices)}) as stack:
        gateway = stack.gateway
        gateway.add_caller("late")
        assert send(stack, CHAT, SERVICE, "Hi", caller="late").status == 200, "a new key works at once"
        old = gateway.keys["late"]
        gateway.keys["late"] = run_script("callers", "rotate", "late", env=gateway.env).document["api_key"]
        assert send(stack, CHAT, SERVICE, "Hi", caller="late").status == 200
        run_script("callers", "disable", "late", env=gateway.env)
        eventually(lambda: send(stack, CHAT, SERVICE, "Hi", caller="late").status == 401, timeout=5)
        assert ask(gateway.port, request("POST", CHAT, key=old, body={})).status == 401

        assert send(stack, CHAT, "service-9", "Hi").status == 404
        gateway.register("service-9", stack.service.url)
        assert eventually(lambda: _not(send(stack, CHAT, "service-9", "Hi"), 404), timeout=5).status == 200

        first = gateway.row(send(stack, MESSAGES, CLAUDE, "Hi").headers["x-request-id"])
        document = yaml.safe_load(prices.read_text())
        _double(document["token_prices"])
        prices.write_text(yaml.safe_dump(document))

        def dearer() -> bool:
            row = gateway.row(send(stack, MESSAGES, CLAUDE, "Hi").headers["x-request-id"])
            return Decimal(row["cost_usd"]) == 2 * Decimal(first["cost_usd"])

        eventually(dearer, timeout=10, every=0.3)


def test_a_broken_registry_or_price_list_changes_nothing(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text((SKILL / "references" / "pricing.yaml").read_text())
    with gateway_stack(tmp_path / "reload", env={"TAO_INF_PRICING": str(prices)}) as stack:
        first = stack.gateway.row(send(stack, MESSAGES, CLAUDE, "Hi").headers["x-request-id"])
        prices.write_text("token_prices: [")
        Path(stack.gateway.env["TAO_INF_MS_STATE_FILE"]).write_text("{ not JSON")
        eventually(lambda: "stays in force" in stack.gateway.log)
        after = stack.gateway.row(send(stack, MESSAGES, CLAUDE, "Hi").headers["x-request-id"])
        assert after["cost_usd"] == first["cost_usd"]
        assert send(stack, CHAT, SERVICE, "Hi").status == 200


def test_a_locked_database_neither_fails_nor_slows_requests(tmp_path: Path) -> None:
    with gateway_stack(tmp_path / "locked") as stack:
        send(stack, CHAT, SERVICE, "warm")
        stack.gateway.rows(least=1)
        holder = sqlite3.connect(stack.gateway.database, isolation_level=None, timeout=10)
        holder.execute("BEGIN EXCLUSIVE")
        try:
            began = time.monotonic()
            ids = {send(stack, CHAT, SERVICE, f"held {n}").headers["x-request-id"] for n in range(20)}
            assert time.monotonic() - began < 3
        finally:
            holder.execute("ROLLBACK")
            holder.close()
        rows = stack.gateway.rows(least=21)
        assert len(rows) == 21 and ids < {row["request_id"] for row in rows}


# Secrets


def test_no_key_is_in_the_log_the_rows_a_command_line_or_an_answer(tmp_path: Path) -> None:
    with gateway_stack(tmp_path / "secrets", arguments=["--json-log", "--log-bodies"]) as stack:
        gateway = stack.gateway
        key, vendors = gateway.keys["app"], stack.claude.key
        answers = [send(stack, path, model, "Hi") for path in (CHAT, MESSAGES) for model in (CLAUDE, SERVICE)]
        answers += [send(stack, MESSAGES, CLAUDE, f"my key is {key} and yours {vendors}")]
        answers += [ask(gateway.port, request("GET", f"/v1/models?api_key={key}", key=key))]
        answers += [ask(gateway.port, request("GET", f"/nowhere/{key}", key=key))]
        answers += [ask(gateway.port, request("POST", f"/v1/{key}", key=key, body={"model": key}))]
        answers += [send(stack, CHAT, key, "Hi")]
        answers += [
            ask(
                gateway.port,
                b"GET /" + key.encode() + b" HTTP/1.1\r\nAuthorization Bearer " + key.encode() + b"\r\n\r\n",
            )
        ]
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            assert key not in words and vendors not in words and gateway.admin_key not in words
        gateway.rows(least=len(answers) - 2)
        assert gateway.stop() == 0
        secret = key.rpartition("-")[2]
        for text in (secret, vendors, gateway.admin_key):
            assert text not in gateway.log
            for file in gateway.folder.rglob("*"):
                if file.is_file():
                    assert text.encode() not in file.read_bytes(), file
            assert all(text.encode() not in answer.body for answer in answers if answer.status == 401)


def _not_ready(kept: socket.socket) -> bool:
    """Whether readiness says no on a connection from before, or has closed it."""
    try:
        kept.sendall(request("GET", READINESS))
        return read_answer(kept).status in (503, 0)
    except OSError:
        return True


def _refused(port: int) -> bool:
    """Whether there is no new connection to be had, or nothing on it."""
    try:
        return ask(port, request("GET", READINESS)).status in (503, 0)
    except OSError:
        return True


def _not(answer: Answer, status: int) -> Answer | None:
    return None if answer.status == status else answer


def _double(prices: Any) -> None:
    """Make every price in the document twice as high."""
    items: Any = prices.items() if isinstance(prices, dict) else enumerate(prices)
    for name, value in list(items):
        if isinstance(value, dict | list):
            _double(value)
        elif name in _PRICES and value is not None:
            prices[name] = str(2 * Decimal(str(value)))


_PRICES = ("input", "output", "cache_write_5m", "cache_write_1h", "cached")

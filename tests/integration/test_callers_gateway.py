"""Callers at real gateways: changes are followed while they run, and several keep one budget to the last nano-USD."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from database_fixtures import database_url, postgresql
from doubles.anthropic_api import AnthropicApi
from gateway_process import MESSAGES, Gateway, serving_gateway
from gateway_stack import CLAUDE
from support import eventually, run_script

from inference_service import sql
from inference_service.callers import allowances, money, store, windows

__all__ = ["database_url", "postgresql"]

FOLLOWED_WITHIN = 1.5  # seconds; a look each second, and the request


@pytest.fixture
def claude() -> Iterator[AnthropicApi]:
    with AnthropicApi() as api:
        yield api


@pytest.fixture
def gateway(tmp_path: Path, claude: AnthropicApi) -> Iterator[Gateway]:
    with serving_gateway(tmp_path / "gateway", upstream_url=claude.url, upstream_key=claude.key) as serving:
        yield serving


def ask(url: str, key: str, max_tokens: int = 20) -> requests.Response:
    body = {"model": CLAUDE, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hi"}]}
    return requests.post(url + MESSAGES, json=body, headers={"x-api-key": key}, timeout=60)


def error_of(answer: requests.Response) -> str:
    return str(answer.json()["error"]["type"])


def callers(gateway: Gateway, *arguments: str) -> Any:
    return run_script("callers", *arguments, env=gateway.env).document


def test_a_running_gateway_follows_every_change(gateway: Gateway) -> None:
    key = gateway.add_caller("web")
    assert ask(gateway.url, key).status_code == 200, "a key is known at its first use"

    def soon(status: int) -> requests.Response:
        answers: list[requests.Response] = []

        def probe() -> bool:
            answers.append(ask(gateway.url, key))
            return answers[-1].status_code == status

        eventually(probe, timeout=FOLLOWED_WITHIN, every=0.02)
        return answers[-1]

    callers(gateway, "disable", "web")
    soon(401)
    callers(gateway, "enable", "web")
    assert ask(gateway.url, key).status_code == 200

    callers(gateway, "limits", "web", "--allow-model", "smollm2")
    soon(403)
    callers(gateway, "limits", "web", "--allow-any-model", "--usd-per-day", "0.000001")
    answer = soon(429)
    assert "usd_per_day of web is 0.000001 USD" in answer.text
    assert float(answer.headers["retry-after"]) > 0

    new = callers(gateway, "rotate", "web", "--grace", "1h")["api_key"]
    assert ask(gateway.url, new).status_code == 429, "the new key has the same limits"
    callers(gateway, "limits", "web", "--usd-per-day", "none")
    eventually(lambda: ask(gateway.url, new).status_code == 200, timeout=FOLLOWED_WITHIN)
    assert ask(gateway.url, key).status_code == 200, "the old key still works"
    callers(gateway, "remove", "web")
    soon(401)
    assert ask(gateway.url, new).status_code == 401
    assert gateway.rows("caller = ?", "web"), "its rows stay"


def test_a_caller_sees_what_it_used_and_nobody_elses(gateway: Gateway) -> None:
    key = gateway.add_caller("web", "--team", "search", "--usd-per-month", "1")
    assert ask(gateway.url, gateway.keys["app"]).status_code == 200
    for _ in range(3):
        assert ask(gateway.url, key).status_code == 200
    cost = sum(Decimal(row["cost_usd"]) for row in gateway.rows("caller = ?", "web", least=3))

    def usage() -> dict[str, Any]:
        answer = requests.get(gateway.url + "/v1/usage", headers={"x-api-key": key}, timeout=30)
        document: dict[str, Any] = answer.json()
        return document

    document = eventually(lambda: d if (d := usage())["today"]["requests"] == 3 else None, timeout=10)
    assert (document["caller"], document["team"]) == ("web", "search")
    assert Decimal(document["today"]["cost_usd"]) == cost > 0
    assert [line["model"] for line in document["this_month"]["by_model"]] == [CLAUDE]
    (month,) = document["limits"]
    assert Decimal(month["used"]) == cost
    # What the gateway holds for the next requests goes back when none comes.
    eventually(lambda: Decimal(usage()["limits"][0]["left"]) == 1 - cost, timeout=15)


@pytest.mark.slow
def test_two_gateways_keep_one_budget_and_count_every_row_once(
    tmp_path: Path, claude: AnthropicApi, database_url: str
) -> None:
    budget = Decimal("0.004")
    env = {"TAO_GATEWAY_DATABASE": database_url}
    known: dict[str, Any] = {"upstream_url": claude.url, "upstream_key": claude.key, "env": env}
    with (
        serving_gateway(tmp_path / "one", callers={"web": ("--usd-per-day", str(budget))}, **known) as one,
        serving_gateway(tmp_path / "two", callers={}, **known) as two,
        ThreadPoolExecutor(12) as clients,
    ):
        day = windows.start_of("day", time.time())
        key = one.keys["web"]
        answers = list(clients.map(lambda number: ask((one, two)[number % 2].url, key), range(400)))
        if windows.start_of("day", time.time()) != day:
            pytest.skip("midnight UTC passed meanwhile")
        assert {answer.status_code for answer in answers} <= {200, 429}
        served = sum(answer.status_code == 200 for answer in answers)
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert error_of(refused) == "rate_limit_error"
        assert "usd_per_day of web is 0.004 USD" in refused.text
        assert one.stop() == 0
        assert two.stop() == 0

    database = sql.open(database_url)
    with database.snapshot() as cursor:
        caller = store.read(cursor)[0].caller
        costs = [
            sql.as_decimal(cost) for (cost,) in cursor.execute("SELECT cost_usd FROM requests WHERE http_status = 200")
        ]
        used = allowances.used(cursor, (caller.id, "usd_per_day", day))
        held = cursor.execute("SELECT amount FROM leases WHERE quantity = 'usd_per_day'").fetchall()
    database.close()
    assert len(costs) == served
    assert used == sum(money.nano_usd(cost) for cost in costs if cost is not None)
    assert money.nano_usd(budget) // 5 < used <= money.nano_usd(budget)
    assert [amount for (amount,) in held] == [0] * len(held), "whatever was not spent went back"

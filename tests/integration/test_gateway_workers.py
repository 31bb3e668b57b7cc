"""Several workers on one port: all of them answer, a dead one is replaced, and none outlives its parent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from doubles.openai_service import OpenAIService
from gateway_process import CHAT, READINESS, Gateway, serving_gateway
from support import eventually, run_script

BODY = {"model": "service-1", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with (
        OpenAIService("service-1") as service,
        serving_gateway(
            tmp_path,
            services={"service-1": service.url},
            callers={"app": (), "thrifty": ("--requests-per-minute", "20")},
            arguments=("--workers", "3"),
        ) as gateway,
    ):
        yield gateway


def ask(gateway: Gateway, caller: str = "app") -> requests.Response:
    # A connection of its own each time: the kernel deals connections to workers.
    return requests.post(
        gateway.url + CHAT,
        json=BODY,
        headers={"Authorization": f"Bearer {gateway.caller_key(caller)}", "Connection": "close"},
        timeout=30,
    )


def workers(gateway: Gateway) -> list[psutil.Process]:
    return psutil.Process(gateway.pid).children()


def test_all_workers_answer_and_their_figures_are_added_up(gateway: Gateway) -> None:
    with ThreadPoolExecutor(8) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: ask(gateway), range(60))]
    assert statuses == [200] * 60
    rows = gateway.rows("http_status = 200", least=60)
    assert len(rows) == 60
    assert len({row["gateway"] for row in rows}) > 1, "one worker got all connections"

    def counted() -> bool:
        metrics = requests.get(
            gateway.url + "/metrics", headers={"Authorization": f"Bearer {gateway.admin_key}"}, timeout=10
        ).text
        counts = re.findall(r'(?m)^tao_gateway_requests_total\{.*caller="app".*\} (\d+)$', metrics)
        return sum(map(int, counts)) == 60

    eventually(counted, 15)


def test_a_limit_holds_for_all_workers_together(gateway: Gateway) -> None:
    with ThreadPoolExecutor(8) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: ask(gateway, "thrifty"), range(60))]
    # The minute may end in between; each minute has its own.
    assert 0 < statuses.count(200) <= 40
    assert statuses.count(429) >= 20
    assert set(statuses) == {200, 429}


def test_a_worker_that_is_killed_is_replaced(gateway: Gateway) -> None:
    before = {worker.pid for worker in workers(gateway)}
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len({worker.pid for worker in workers(gateway)} - before) == 1, 15)

    def answers() -> bool:
        try:
            return all(ask(gateway).status_code == 200 for _ in range(10))
        except requests.ConnectionError:
            return False

    eventually(answers, 15)


def test_workers_end_when_their_parent_is_killed(gateway: Gateway) -> None:
    children = workers(gateway)
    assert len(children) == 3
    os.kill(gateway.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", gateway.port)) != 0


def test_term_ends_all_and_says_so_by_its_exit_status(gateway: Gateway) -> None:
    assert requests.get(gateway.url + READINESS, timeout=10).status_code == 200
    children = workers(gateway)
    assert gateway.stop() == 0
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


def test_workers_that_cannot_serve_end_the_start_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "pricing.yaml").write_text("gpu_hour_prices: nonsense\n")
    failed = run_script(
        "serve_gateway",
        *("--port", "0", "--workers", "2"),
        env={"TAO_INF_PRICING": str(tmp_path / "pricing.yaml")},
        expect=1,
    )
    assert failed.document["error"]["type"] == "worker_failed"
    assert "pricing.yaml" in failed.stderr


def test_the_line_that_it_prints_names_its_address(gateway: Gateway) -> None:
    assert json.loads(requests.get(gateway.url + "/api/v1/health/liveness", timeout=10).text)["status"] == "alive"

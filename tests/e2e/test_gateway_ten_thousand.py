"""Ten thousand mixed requests with faults at both ends, a real model among the routes, and kill -9 in the middle.

Then: every request whose answer a client had in full has exactly one row, money adds up to the last decimal against an
independent computation from what the clients saw, and no budget and no limit was passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import pytest
from gateway_process import CHAT, MESSAGES, Gateway, serving_gateway
from raw_http import ask, request
from smollm2_process import Service, need_model, start_in
from support import SKILL, run_script

COUNT = 10_000
CLIENTS = 48
DAILY_BUDGET = Decimal("0.02")
PER_MINUTE = 100
# USD for a million tokens: input, output, written to the cache for 5 minutes and for an hour, read from it. Written a
# second time on purpose: what is added up is held against what the vendor's list says, not against our own file.
PRICES = {
    "claude-haiku-4-5": ("1", "5", "1.25", "2", "0.10"),
    "claude-sonnet-4-5": ("3", "15", "3.75", "6", "0.30"),
    "claude-opus-5-5": ("4", "20", "5", "8", "0.20"),
    "claude-haiku-5-5": ("0.10", "0.50", "0.125", "0.20", "0.01"),
}
ABOVE_100K = {"claude-haiku-5-5": ("0.50", "2.50", "0.625", "1.00", "0.05")}
SERVICE, REAL = "service-1", "smollm2-1"


@dataclass
class Plan:
    """One request to make. `leave`: go away after the first piece of the stream."""

    caller: str
    path: str
    model: str
    body: bytes
    stream: bool = False
    leave: bool = False


@dataclass
class Seen:
    """What the client saw of one."""

    plan: Plan
    request_id: str | None = None
    status: int = 0
    complete: bool = False
    usage: dict[str, int] = field(default_factory=dict)


def planned() -> list[Plan]:
    """The requests, the same every time."""
    rng = random.Random(5)
    plans = [_plan(rng, number) for number in range(COUNT - 60)]
    for number in range(60):
        stream = number % 2 == 1
        plans.append(_made("alpha", (CHAT, MESSAGES)[number % 4 // 2], REAL, "Say yes.", stream, max_tokens=4))
    rng.shuffle(plans)
    return plans


def _plan(rng: random.Random, number: int) -> Plan:
    caller = rng.choices(["alpha", "beta", "budget", "minute"], [60, 20, 14, 6])[0]
    path, stream = rng.choice((CHAT, MESSAGES)), rng.random() < 0.5
    model = rng.choice([*PRICES, SERVICE, SERVICE])
    words = " ".join(["word"] * rng.randrange(1, 30))
    luck = rng.random()
    if luck < 0.02:
        return _made("nobody", path, model, words, stream)
    if luck < 0.03:
        return _made(caller, path, "no-such-model", words, stream)
    if luck < 0.04:
        return Plan(
            caller, path, "", rng.choice([b"{", b"[]", b'{"model": 7}', b"\xff\xfe", b'{"model": "x", "model": "y"}'])
        )
    if luck < 0.06:
        return _made(caller, path, model, f"{words} [[words=300; token_delay=0.02; key={number}]]", True, leave=True)
    if luck < 0.14:
        fault = rng.choice(["status=529", "status=500", "status=429; retry_after=0", "reset=1", "status=503"])
        return _made(caller, path, model, f"{words} [[{fault}; times=1; key={number}]]", stream)
    if luck < 0.17:
        return _made(caller, path, model, f"{words} [[{rng.choice(['cut_after', 'error_after'])}=4]]", True)
    if luck < 0.18:
        return _made(caller, path, model, f"{words} [[cut_after=0]]", False)
    if luck < 0.26 and path == MESSAGES and model != SERVICE and caller != "budget":
        # Not for that one: the double's cached prompts are longer than any body, which no budget can foresee.
        cached = rng.choice([0, 17, 99_000, 150_000])
        cache = f"cache_read={cached}; cache_write_5m={rng.randrange(500)}; cache_write_1h={rng.randrange(500)}"
        return _made(caller, path, model, f"{words} [[{cache}]]", stream)
    if luck < 0.28:
        return _made(caller, path, model, f"{words} [[words={rng.randrange(60, 300)}]]", stream)
    return _made(caller, path, model, words, stream)


def _made(
    caller: str, path: str, model: str, prompt: str, stream: bool, leave: bool = False, max_tokens: int = 400
) -> Plan:
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "stream": stream}
    if stream and path == CHAT:
        body["stream_options"] = {"include_usage": True}
    body["messages"] = [{"role": "user", "content": prompt}]
    return Plan(caller, path, model, json.dumps(body).encode(), stream, leave)


class Clients:
    """Several at once, each with a connection that it keeps while it can."""

    def __init__(self, gateway: Gateway, plans: list[Plan]) -> None:
        self.gateway, self.port = gateway, gateway.port
        self.plans = iter(plans)
        self.seen: list[Seen] = []
        self.done = 0
        self.half = asyncio.Event()

    async def run(self) -> None:
        """Make all the requests; after half of them the gateway is killed and started again."""
        await asyncio.gather(self._kill_in_the_middle(), *(self._client() for _ in range(CLIENTS)))

    async def _kill_in_the_middle(self) -> None:
        await self.half.wait()
        await asyncio.to_thread(self.gateway.kill)
        await asyncio.to_thread(self.gateway.start, port=self.port)

    async def _client(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for plan in self.plans:
            seen = Seen(plan)
            self.seen.append(seen)
            if streams is None:
                streams = await self._connected()
            kept = False
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                kept = await self._ask(seen, *streams)
            if not kept:
                streams[1].transport.abort()
                streams = None
            self.done += 1
            if self.done == COUNT // 2:
                self.half.set()
        if streams is not None:
            streams[1].close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = time.monotonic() + 30
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
            except ConnectionError:
                assert time.monotonic() < deadline, self.gateway.log[-2000:]
                await asyncio.sleep(0.02)

    async def _ask(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Make the request; whether the connection can be kept."""
        plan = seen.plan
        key = self.gateway.keys.get(plan.caller, "tao-00000000-nobody")
        writer.write(request("POST", plan.path, key=key, body=plan.body))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        seen.status, seen.request_id = int(head[0].split()[1]), headers["x-request-id"]
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
                if plan.leave:
                    return False
            await reader.readexactly(2)
        seen.complete = True
        if seen.status == 200:
            seen.usage = _usage(plan, body)
        return headers.get("connection") != "close"


def _usage(plan: Plan, body: bytes) -> dict[str, int]:
    """The usage that an answer told, Anthropic's as it is; nothing where it told none to its end."""
    documents = [json.loads(body)] if not plan.stream else _events(body)
    usage: dict[str, int] = {}
    for document in documents:
        if "error" in document:
            return {}
        told = document.get("usage") or document.get("message", {}).get("usage") or {}
        if plan.path == CHAT and told:
            details = told.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens") or 0
            usage = {"input": told["prompt_tokens"] - cached, "output": told["completion_tokens"], "read": cached}
        elif told:
            written = told.get("cache_creation") or {}
            usage["output"] = told["output_tokens"]
            if "input_tokens" in told and told["input_tokens"] is not None:
                usage["input"] = told["input_tokens"]
            if "cache_creation" in told:
                usage["five"] = written.get("ephemeral_5m_input_tokens", 0)
                usage["hour"] = written.get("ephemeral_1h_input_tokens", 0)
                usage["read"] = told.get("cache_read_input_tokens") or 0
    return usage


def _events(body: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def cost(model: str, usage: dict[str, int]) -> Decimal:
    """What the vendor's list says that it costs, exactly."""
    parts = [usage.get(name, 0) for name in ("input", "output", "five", "hour", "read")]
    prompt = sum(parts) - parts[1]
    prices = ABOVE_100K[model] if model in ABOVE_100K and prompt > 100_000 else PRICES[model]
    return sum((Decimal(price) * part for price, part in zip(prices, parts, strict=True)), Decimal(0)) / 1_000_000


@contextlib.contextmanager
def double(name: str) -> Iterator[str]:
    """A double as a process of its own; its address."""
    program = SKILL / "tests" / "doubles" / f"{name}.py"
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


@pytest.fixture
def real_model(tmp_path: Path) -> Iterator[Service]:
    need_model()
    services: list[Service] = []
    folder = tmp_path / "smollm2"
    folder.mkdir()
    try:
        yield start_in(folder, services).ready()
    finally:
        for one in services:
            one.process.kill()
            one.process.wait(10)


@pytest.mark.slow
def test_ten_thousand_requests_with_faults_and_a_kill_leave_right_rows_and_right_money(
    tmp_path: Path, real_model: Service, database_url: str
) -> None:
    callers = {
        "alpha": ("--team", "red"),
        "beta": ("--team", "blue", "--usd-per-month", "100"),
        "budget": ("--team", "blue", "--usd-per-day", str(DAILY_BUDGET)),
        "minute": ("--requests-per-minute", str(PER_MINUTE)),
    }
    with double("anthropic_api") as claude, double("openai_service") as service:
        services = {SERVICE: service, REAL: real_model.url}
        with serving_gateway(
            tmp_path / "gateway",
            upstream_url=claude,
            upstream_key="sk-ant-api03-of-the-double",
            callers=callers,
            services=services,
            arguments=["--workers", "2"],
            env={"TAO_GATEWAY_DATABASE": database_url},
        ) as gateway:
            _wait_out_midnight()
            began = time.time()
            clients = asyncio.run(_all_asked(gateway))
            minutes = int(time.time() // 60 - began // 60) + 1
            assert gateway.stop() == 0
            rows = gateway.rows(least=1)
            report = run_script("usage_report", "--by", "caller", "--format", "json", env=gateway.env).document
            gateway.start()
            own = ask(gateway.port, request("GET", "/v1/usage", key=gateway.keys["budget"])).json

    _rows_equal_requests(clients.seen, rows)
    _money_adds_up(clients.seen, rows, report)
    _limits_held(rows, minutes)
    _told_its_own(own, rows)


def _wait_out_midnight() -> None:
    """The budget is for a day of UTC: not one that ends in the middle of this."""
    left = 86_400 - time.time() % 86_400
    if left < 90:
        time.sleep(left + 1)


async def _all_asked(gateway: Gateway) -> Clients:
    clients = Clients(gateway, planned())
    await asyncio.wait_for(clients.run(), 300)
    return clients


def _rows_equal_requests(seen: list[Seen], rows: list[dict[str, Any]]) -> None:
    assert len(seen) == COUNT
    complete = {one.request_id: one for one in seen if one.complete}
    incomplete = [one for one in seen if not one.complete]
    assert len(complete) > COUNT * 0.9 and len(incomplete) > 50, (
        "they were answered, but for those that left or were cut"
    )
    by_id = {row["request_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    missing = [one for request_id, one in complete.items() if request_id not in by_id]
    assert not missing, f"{len(missing)} completed requests left no row, such as {missing[0]}"
    for request_id, one in complete.items():
        row = by_id[request_id or ""]
        assert row["http_status"] == one.status, (one, row)
        assert row["caller"] == (one.plan.caller if one.plan.caller != "nobody" else ""), (one, row)
    # What is there beside was begun by a client that has no whole answer: it left, or the gateway was killed.
    extra = by_id.keys() - complete.keys()
    known = {one.request_id for one in incomplete if one.request_id}
    unknown = [by_id[request_id] for request_id in extra - known]
    assert len(extra) <= len(incomplete) and len(unknown) <= CLIENTS, unknown[:3]
    words = Counter(by_id[request_id]["error_type"] for request_id in extra & known)
    assert words["client_disconnected"] > 20
    # The others had their row already, but not yet the end of their answer, when the gateway was killed.
    assert words.total() - words["client_disconnected"] <= CLIENTS, words


def _money_adds_up(seen: list[Seen], rows: list[dict[str, Any]], report: Any) -> None:
    expected = {
        one.request_id: cost(one.plan.model, one.usage) for one in seen if one.usage and one.plan.model in PRICES
    }
    assert len(expected) > COUNT * 0.4
    assert len({one.plan.model for one in seen if one.usage and one.plan.model in ABOVE_100K}) == 1
    total: Counter[str] = Counter()
    for row in rows:
        request_id, told = row["request_id"], row["cost_usd"]
        if request_id in expected:
            assert told is not None and Decimal(told) == expected[request_id], (row, expected[request_id])
        elif row["job_id"] is not None and row["http_status"] == 200:
            assert told is None, "a service whose GPU has no price is not free"
        elif row["error_type"] in ("client_disconnected", "upstream_cut") and row["output_tokens"]:
            parts = {"input": row["input_tokens"] - row["cached_tokens"], "read": row["cached_tokens"]}
            assert Decimal(told) == cost(_priced_as(row), {**parts, "output": row["output_tokens"]}), row
        if told is not None:
            total[row["caller"]] += Decimal(told)  # type: ignore[assignment]
    sums = {
        group["caller"]: Decimal(str(group["cost_usd"])) for group in report["groups"] if group["cost_usd"] is not None
    }
    assert {name: value for name, value in sums.items() if value} == {n: v for n, v in total.items() if v}


def _priced_as(row: dict[str, Any]) -> str:
    return next(model for model in PRICES if str(row["model"]).startswith(model))


def _limits_held(rows: list[dict[str, Any]], minutes: int) -> None:
    spent = sum((Decimal(row["cost_usd"]) for row in rows if row["caller"] == "budget" and row["cost_usd"]), Decimal(0))
    refused = Counter(row["error_type"] for row in rows if row["http_status"] == 429)
    assert DAILY_BUDGET / 2 < spent <= DAILY_BUDGET and refused["budget_day"] > 10, (spent, refused)
    passed = [row for row in rows if row["caller"] == "minute" and row["http_status"] == 200]
    assert 0 < len(passed) <= PER_MINUTE * minutes and refused["rate_limited_requests"] > 10


def _told_its_own(own: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """What the caller is told that it used is what its rows say, each rounded up to a nano-USD, and is still held
    against its budget by a gateway that has just begun."""
    mine = [Decimal(row["cost_usd"]) for row in rows if row["caller"] == "budget" and row["cost_usd"]]
    rounded = sum((cost.quantize(Decimal("1e-9"), ROUND_CEILING) for cost in mine), Decimal(0))
    assert Decimal(own["today"]["cost_usd"]) == rounded
    (limit,) = own["limits"]
    assert Decimal(limit["used"]) == rounded and Decimal(limit["left"]) <= DAILY_BUDGET - rounded

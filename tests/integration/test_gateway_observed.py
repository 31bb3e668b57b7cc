"""What the running gateway tells those who watch it: figures for Prometheus, spans for OTLP, lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from doubles.anthropic_api import AnthropicApi
from doubles.otlp_receiver import Receiver, attributes
from gateway_process import CHAT, MESSAGES, Gateway, serving_gateway
from prometheus_client.parser import text_string_to_metric_families
from support import eventually

CLAUDE = "claude-haiku-4-5"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def claude() -> Iterator[AnthropicApi]:
    with AnthropicApi() as api:
        yield api


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, claude: AnthropicApi, receiver: Receiver) -> Iterator[Gateway]:
    with serving_gateway(
        tmp_path_factory.mktemp("gateway"),
        upstream_url=claude.url,
        upstream_key=claude.key,
        callers={"app": ("--team", "web"), "poor": ("--usd-per-day", "0.0000001")},
        arguments=("--workers", "2", "--json-log"),
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint},
    ) as running:
        yield running


def ask(gateway: Gateway, caller: str = "app", path: str = MESSAGES, **more: Any) -> requests.Response:
    """One request on a connection of its own, so that either worker may get it."""
    headers = {"x-api-key": gateway.caller_key(caller), "connection": "close", **more.pop("headers", {})}
    body = {"model": CLAUDE, "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}], **more}
    return requests.post(gateway.url + path, headers=headers, json=body, timeout=30)


def figures(gateway: Gateway, name: str, **labels: str) -> float:
    answer = requests.get(
        f"{gateway.url}/metrics", headers={"Authorization": f"Bearer {gateway.admin_key}"}, timeout=10
    )
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == f"tao_gateway_{name}" and labels.items() <= sample.labels.items()
    )


def lines(gateway: Gateway, **fields: Any) -> list[dict[str, Any]]:
    """The lines of its log that are requests with these fields."""
    documents = [json.loads(line) for line in gateway.log.splitlines() if line.startswith('{"event":"request"')]
    return [document for document in documents if fields.items() <= document.items()]


def test_the_figures_of_all_workers_are_one(gateway: Gateway) -> None:
    before = figures(gateway, "requests_total", caller="app", status="200")
    for number in range(24):
        assert ask(gateway, path=(MESSAGES, CHAT)[number % 2]).status_code == 200
    assert ask(gateway, "poor").status_code == 429

    def counted() -> bool:
        return figures(gateway, "requests_total", caller="app", status="200") == before + 24

    eventually(counted, timeout=10)
    eventually(lambda: figures(gateway, "workers") == 2, timeout=10)
    assert figures(gateway, "request_duration_seconds_count", route=CHAT, caller="app") == 12
    eventually(lambda: figures(gateway, "limit_refusals_total", caller="poor", limit="budget_day") == 1)
    assert figures(gateway, "cost_usd_total", caller="app", model=CLAUDE) > 0
    assert figures(gateway, "unpriced_requests_total") == 0


def test_the_figures_need_the_admin_key(gateway: Gateway) -> None:
    assert requests.get(f"{gateway.url}/metrics", timeout=10).status_code == 401
    headers = {"Authorization": f"Bearer {gateway.caller_key('app')}"}
    assert requests.get(f"{gateway.url}/metrics", headers=headers, timeout=10).status_code == 401


def test_the_callers_trace_goes_on_to_the_upstream(gateway: Gateway, claude: AnthropicApi, receiver: Receiver) -> None:
    answer = ask(gateway, headers={"traceparent": PARENT}, stream=True)
    assert answer.status_code == 200
    sent = claude.requests[-1].headers["traceparent"]

    def client_span() -> Any:
        return [span for span in receiver.spans if span.span_id.hex() == sent.split("-")[2]]

    (client,) = eventually(client_span, timeout=15)
    (server,) = [span for span in receiver.spans if span.span_id == client.parent_span_id]
    assert sent.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert server.parent_span_id.hex() == "b7ad6b7169203331"
    known = attributes(client)
    assert known["gen_ai.provider.name"] == "anthropic"
    assert known["gen_ai.request.model"] == CLAUDE
    assert known["gen_ai.request.stream"] is True
    assert known["gen_ai.usage.output_tokens"] > 0
    assert attributes(server)["tao.caller"] == "app"
    assert server.start_time_unix_nano <= client.start_time_unix_nano < client.end_time_unix_nano


def test_a_request_that_is_refused_is_a_span_without_an_upstream(gateway: Gateway, receiver: Receiver) -> None:
    answer = ask(gateway, model="no-such-model", headers={"traceparent": PARENT.replace("0af7", "0bf7")})
    assert answer.status_code == 404

    def spans() -> Any:
        return [span for span in receiver.spans if span.trace_id.hex().startswith("0bf7")]

    (server,) = eventually(spans, timeout=15)
    assert attributes(server)["error.type"] == "unknown_model"


def test_each_request_is_a_line_of_json(gateway: Gateway) -> None:
    answer = ask(gateway, headers={"x-tao-tags": "feature=summary"})
    request_id = answer.headers.get("x-request-id") or answer.headers["request-id"]
    (line,) = eventually(lambda: lines(gateway, request_id=request_id))
    assert line["caller"] == "app"
    assert line["team"] == "web"
    assert line["tags"] == {"feature": "summary"}
    assert line["model"] == CLAUDE
    assert line["http_status"] == answer.status_code
    assert line["total_seconds"] > 0
    assert float(line["cost_usd"]) > 0
    assert gateway.caller_key("app") not in gateway.log
    assert gateway.admin_key not in gateway.log

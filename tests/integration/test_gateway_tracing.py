"""Spans as an OTLP receiver gets them: names, ids, times, attributes; and what a receiver in trouble costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from doubles.otlp_receiver import Receiver, attributes
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support import SCRIPTS, eventually

from inference_service.gateway import tracing
from inference_service.gateway.redaction import Redactor
from inference_service.request_log.rows import RequestRow

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    @contextmanager
    def start(endpoint: str) -> Iterator[tracing.Tracing]:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        traces = tracing.open(os.environ, {"claude": "anthropic"}, Redactor({}), "gw-1")
        assert traces
        try:
            yield traces
        finally:
            traces.close()

    return start


def row(**given: Any) -> RequestRow:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "time": 1_700_000_000.25,
        "route": "/v1/chat/completions",
        "caller": "alice",
        "team": "search",
        "tags": {"feature": "summary"},
        "network_arch": "claude",
        "model": "claude-sonnet-5",
        "stream": True,
        "http_status": 200,
        "queue_seconds": 0.5,
        "connect_seconds": 0.0,
        "first_byte_seconds": 1.0,
        "first_token_seconds": 1.5,
        "total_seconds": 3.0,
        "input_tokens": 100,
        "output_tokens": 20,
        "cached_tokens": 60,
        "cache_write_5m_tokens": 10,
        "cache_write_1h_tokens": 5,
        "cost_usd": Decimal("0.0125"),
    }
    return RequestRow(**{**fields, **given})


def test_a_request_is_a_server_span_of_the_callers_trace_with_a_client_span_below(
    receiver: Receiver, opened: Callable[[str], Any]
) -> None:
    with opened(receiver.endpoint) as traces:
        trace = traces.begin({b"traceparent": PARENT})
        traces.observe(row(), trace)
    server, client = receiver.spans
    assert server.name == "POST /v1/chat/completions"
    assert server.kind == Span.SPAN_KIND_SERVER
    assert server.trace_id.hex() == client.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert server.parent_span_id.hex() == "b7ad6b7169203331"
    assert client.parent_span_id == server.span_id
    assert trace.traceparent == b"00-0af7651916cd43dd8448eb211c80319c-%s-01" % client.span_id.hex().encode()
    assert client.kind == Span.SPAN_KIND_CLIENT
    assert client.name == "chat claude-sonnet-5"
    assert server.start_time_unix_nano == 1_700_000_000_250_000_000
    assert client.start_time_unix_nano == 1_700_000_000_750_000_000
    assert server.end_time_unix_nano == client.end_time_unix_nano == 1_700_000_003_250_000_000
    assert server.status.code == client.status.code == Status.STATUS_CODE_UNSET


def test_attributes_follow_the_genai_conventions(receiver: Receiver, opened: Callable[[str], Any]) -> None:
    with opened(receiver.endpoint) as traces:
        traces.observe(row(), traces.begin({}))
    server, client = map(attributes, receiver.spans)
    assert client == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-sonnet-5",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 1.0,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 60,
        "gen_ai.usage.cache_write.input_tokens": 15,
        "gen_ai.usage.cache_creation.input_tokens": 15,
        "http.response.status_code": 200,
        "tao.connect_seconds": 0.0,
    }
    assert server["http.request.method"] == "POST"
    assert server["http.route"] == "/v1/chat/completions"
    assert server["http.response.status_code"] == 200
    assert server["tao.caller"] == "alice"
    assert server["tao.tag.feature"] == "summary"
    assert server["tao.cost_usd"] == 0.0125
    resource = attributes(receiver.requests[0].resource_spans[0].resource)
    assert resource["service.name"] == "tao-inference-gateway"
    assert resource["service.instance.id"] == "gw-1"


@pytest.mark.parametrize(
    ("fields", "server_code", "client_code"),
    [
        ({"http_status": 529, "error_type": "upstream_overloaded_error"}, "ERROR", "ERROR"),
        ({"http_status": 400, "error_type": "upstream_invalid_request_error"}, "UNSET", "ERROR"),
        ({"http_status": 200, "error_type": "client_disconnected"}, "UNSET", "ERROR"),
        ({"http_status": None, "error_type": "client_disconnected"}, "ERROR", "ERROR"),
    ],
)
def test_failures_are_marked_where_they_are_failures(
    receiver: Receiver, opened: Callable[[str], Any], fields: dict[str, Any], server_code: str, client_code: str
) -> None:
    with opened(receiver.endpoint) as traces:
        traces.observe(row(**fields), traces.begin({}))
    server, client = receiver.spans
    assert Status.StatusCode.Name(server.status.code) == f"STATUS_CODE_{server_code}"
    assert Status.StatusCode.Name(client.status.code) == f"STATUS_CODE_{client_code}"
    assert attributes(client)["error.type"] == fields["error_type"]


def test_a_request_that_we_refused_has_no_client_span(receiver: Receiver, opened: Callable[[str], Any]) -> None:
    refused = row(
        http_status=429, error_type="budget_day", connect_seconds=None, first_byte_seconds=None, queue_seconds=None
    )
    with opened(receiver.endpoint) as traces:
        traces.observe(refused, traces.begin({}))
    (server,) = receiver.spans
    assert attributes(server)["error.type"] == "budget_day"
    assert not server.parent_span_id


def test_a_caller_that_does_not_sample_is_not_exported_and_its_choice_goes_on(
    receiver: Receiver, opened: Callable[[str], Any]
) -> None:
    with opened(receiver.endpoint) as traces:
        trace = traces.begin({b"traceparent": PARENT[:-1] + b"0"})
        traces.observe(row(), trace)
        traces.observe(row(request_id="r2"), traces.begin({}))
    assert trace.traceparent.endswith(b"-00")
    assert {attributes(span).get("tao.request_id") for span in receiver.spans} == {"r2", None}


def test_the_usual_variables_name_the_service_and_choose_the_sampler(
    receiver: Receiver, opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "edge")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    with opened(receiver.endpoint) as traces:
        traces.observe(row(), traces.begin({}))
        traces.observe(row(), traces.begin({b"traceparent": PARENT}))
    assert len(receiver.spans) == 2
    assert attributes(receiver.requests[0].resource_spans[0].resource)["service.name"] == "edge"


def test_what_a_client_chose_is_cleaned_of_keys_and_cannot_spoil_a_batch(
    receiver: Receiver, opened: Callable[[str], Any]
) -> None:
    hostile = row(tags={"k": "sk-ant-api03-abcdefghijklmnop"}, model="half \ud800 pair")
    with opened(receiver.endpoint) as traces:
        traces.observe(hostile, traces.begin({}))
        traces.observe(row(), traces.begin({}))
    assert len(receiver.spans) == 4
    assert b"abcdefghijklmnop" not in b"".join(request.SerializeToString() for request in receiver.requests)


def test_a_collector_that_stands_still_holds_up_no_request(receiver: Receiver, opened: Callable[[str], Any]) -> None:
    receiver.answers.clear()
    with opened(receiver.endpoint) as traces:
        one = row()
        begun = time.perf_counter()
        for _ in range(3 * tracing.MOST_WAITING):
            traces.observe(one, traces.begin({}))
        each = (time.perf_counter() - begun) / (3 * tracing.MOST_WAITING)
        assert traces.dropped >= tracing.MOST_WAITING
        receiver.answers.set()
    assert each < 0.001


def test_a_dead_collector_is_told_of_once(opened: Callable[[str], Any], capfd: pytest.CaptureFixture[str]) -> None:
    with Receiver() as gone:
        endpoint = gone.endpoint
    with opened(endpoint) as traces:
        for _ in range(600):
            traces.observe(row(), traces.begin({}))
        eventually(lambda: len(traces._waiting) < 600)
        traces.close(timeout=0.1)
    assert capfd.readouterr().err.count("note: ") == 1
    assert traces.dropped > 0


def test_spans_arrive_again_when_the_collector_is_back(receiver: Receiver, opened: Callable[[str], Any]) -> None:
    receiver.unavailable = True
    with opened(receiver.endpoint) as traces:
        traces.observe(row(), traces.begin({}))
        eventually(lambda: receiver.refused)
        receiver.unavailable = False
        traces.observe(row(request_id="later"), traces.begin({}))
        eventually(lambda: [span for span in receiver.spans if attributes(span).get("tao.request_id") == "later"])


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys; from inference_service.gateway import tracing; assert tracing.open({}, {}, str) is None;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS)})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        PARENT + b"\r\nX-Injected: 1",
        b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-" + b"x" * 1000,
    ],
)
def test_what_is_no_traceparent_is_not_sent_on(value: bytes) -> None:
    assert tracing.upstream_traceparent({b"traceparent": value}) is None


def test_a_traceparent_of_this_and_of_a_later_version_is_sent_on_as_it_is() -> None:
    for value in (PARENT, b"01" + PARENT[2:] + b"-later"):
        assert tracing.upstream_traceparent({b"traceparent": value}) == value
    assert tracing.upstream_traceparent({}) is None


@given(st.binary(max_size=80))
def test_no_bytes_break_the_reading_of_a_traceparent(value: bytes) -> None:
    sent = tracing.upstream_traceparent({b"traceparent": value})
    assert sent in (None, value)

"""Noise at the gateway: fuzzed bodies, headers and addresses, and its OpenAPI document taken at its word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from gateway_process import CHAT, MESSAGES
from gateway_stack import CLAUDE, SERVICE, THINKER, Stack, body_for, gateway_stack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import Answer, ask, exchange, request, statuses
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support import SKILL

DOCUMENT = json.loads((SKILL / "references" / "gateway.openapi.json").read_text())
OPERATIONS = [f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods]
CONFORMS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway")) as stack:
        yield stack
        assert stack.claude.broken_requests == stack.service.broken_requests == 0, "all that went on was HTTP"
        assert "Traceback" not in stack.gateway.log, stack.gateway.log


# Noise

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *(
            "messages",
            "model",
            "max_tokens",
            "max_completion_tokens",
            "stream",
            "stream_options",
            "system",
            "stop",
            "n",
        ),
        *(
            "stop_sequences",
            "tools",
            "tool_choice",
            "temperature",
            "top_p",
            "thinking",
            "response_format",
            "user",
            "metadata",
        ),
    ]
)
MODELS = st.sampled_from([CLAUDE, SERVICE, THINKER])
PATHS = st.sampled_from([CHAT, MESSAGES])
CONTENTS = JSON_VALUES | st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["text", "image_url", "image", "tool_use", "tool_result", "thinking", "document", ""]
            )
        },
        optional=dict.fromkeys(
            ("text", "image_url", "source", "id", "name", "input", "tool_use_id", "content", "thinking"), JSON_VALUES
        ),
    ),
    max_size=3,
)
MESSAGE_LISTS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "x"]), "content": CONTENTS},
        optional={"tool_calls": JSON_VALUES, "tool_call_id": JSON_VALUES, "name": JSON_VALUES},
    ),
    max_size=3,
)
FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def _send(stack: Stack, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
    return ask(stack.gateway.port, request("POST", path, key=stack.gateway.keys["app"], body=body, headers=headers))


class Answered:
    """What came of all that was sent: each was answered, by us or by the upstream, not by a failure of ours."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.statuses: dict[str, int] = {}

    def take(self, answer: Answer) -> None:
        assert answer.complete and 200 <= answer.status < 500, answer
        if answer.status != 200:
            assert answer.json["error"]["message"]
        self.statuses[answer.headers["x-request-id"]] = answer.status

    def are_in_the_log(self) -> None:
        """Each left its row."""
        assert len(self.statuses) > 10
        marks = ",".join("?" * len(self.statuses))
        rows = self.stack.gateway.rows(f"request_id IN ({marks})", *self.statuses, least=len(self.statuses))
        assert {row["request_id"]: row["http_status"] for row in rows} == self.statuses


@pytest.fixture
def answered(stack: Stack) -> Answered:
    return Answered(stack)


def test_no_noise_in_a_body_makes_the_gateway_fail(answered: Answered) -> None:
    @FUZZ
    @given(path=PATHS, body=st.binary(max_size=300) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
    def holds(path: str, body: bytes) -> None:
        answered.take(_send(answered.stack, path, body or b" "))

    holds()
    answered.are_in_the_log()


def test_no_value_of_a_field_makes_the_gateway_fail(answered: Answered) -> None:
    @FUZZ
    @given(path=PATHS, model=MODELS, changes=st.dictionaries(FIELDS, JSON_VALUES, max_size=3))
    def holds(path: str, model: str, changes: Any) -> None:
        answered.take(_send(answered.stack, path, {**body_for(model, "Hi"), **changes}))

    holds()
    answered.are_in_the_log()


def test_no_message_makes_the_gateway_fail(answered: Answered) -> None:
    @FUZZ
    @given(path=PATHS, model=MODELS, messages=MESSAGE_LISTS, stream=st.booleans())
    def holds(path: str, model: str, messages: Any, stream: bool) -> None:
        answered.take(_send(answered.stack, path, {**body_for(model, ""), "messages": messages, "stream": stream}))

    holds()
    answered.are_in_the_log()


HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=80)
HEADER_NAMES = st.sampled_from(
    [
        *("X-Tao-Tags", "anthropic-version", "anthropic-beta", "traceparent", "Content-Type", "Accept", "Host"),
        *("Accept-Encoding", "Content-Encoding", "Expect", "User-Agent", "X-Stainless-Retry-Count", "Origin"),
    ]
)


def test_no_header_makes_the_gateway_fail(answered: Answered) -> None:
    @FUZZ
    @given(headers=st.dictionaries(HEADER_NAMES, HEADER_TEXT, max_size=4))
    def holds(headers: dict[str, str]) -> None:
        answered.take(_send(answered.stack, MESSAGES, body_for(CLAUDE, "Hi"), headers))

    holds()
    answered.are_in_the_log()


@FUZZ
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]), path=st.binary(max_size=40)
)
def test_no_address_makes_the_gateway_fail(stack: Stack, method: str, path: bytes) -> None:
    target = b"/" + bytes(byte for byte in path if 0x21 <= byte < 0x7F)
    data = method.encode() + b" " + target + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answers = exchange(stack.gateway.port, data)
    assert statuses(answers) and statuses(answers)[0] < 500, answers


# The OpenAPI document


def test_the_gateway_serves_its_openapi_document(stack: Stack) -> None:
    assert ask(stack.gateway.port, request("GET", "/openapi.json")).json == DOCUMENT


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_gateway_does_what_its_openapi_document_says(stack: Stack, label: str) -> None:
    document = schemathesis.openapi.from_dict(DOCUMENT)
    document.config.update(base_url=stack.gateway.url)
    method, _, path = label.partition(" ")
    operator = path in ("/metrics", "/dashboard/data")
    key = stack.gateway.admin_key if operator else stack.gateway.keys["app"]

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(case=document[path][method].as_strategy())
    def conforms(case: Case[Any]) -> None:
        model = case.body.get("model") if isinstance(case.body, dict) else None
        if isinstance(case.body, dict) and isinstance(model, str) and len(model) % 2:
            # A made-up name alone would never get past the routes.
            case.body["model"] = CLAUDE if path.startswith("/v1/messages") else SERVICE
        case.call_and_validate(headers={"Authorization": f"Bearer {key}"}, checks=CONFORMS)

    conforms()

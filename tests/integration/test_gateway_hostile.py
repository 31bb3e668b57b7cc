"""The gateway against people who mean it harm: smuggled requests, injected headers, endless heads, and plain noise."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from doubles.openai_service import OpenAIService
from gateway_process import CHAT, MESSAGES, READINESS
from gateway_stack import CLAUDE, SERVICE, THINKER, Stack, gateway_stack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import Answer, ask, connected, read_all, read_answer, request
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support import SKILL, run_script

DOCUMENT = json.loads((SKILL / "references" / "gateway.openapi.json").read_text())
OPERATIONS = [f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods]
CONFORMS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway")) as stack:
        yield stack
        assert stack.claude.broken_requests == stack.service.broken_requests == 0, "all that went on was HTTP"
        assert "Traceback" not in stack.gateway.log, stack.gateway.log


def body_for(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": prompt}]}


def exchange(stack: Stack, data: bytes) -> bytes:
    """All that comes back until the gateway closes, or is silent for a second."""
    with connected(stack.gateway.port, timeout=1) as connection:
        connection.sendall(data)
        return read_all(connection)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"(?:^|\})HTTP/1\.1 (\d{3})", answers)]


# Smuggling: what one parser takes for a body and another for a request.

LINE = b"\r\n"
SMUGGLING = {
    "length and chunked": [b"Content-Length: 4", b"Transfer-Encoding: chunked"],
    "chunked and length": [b"Transfer-Encoding: chunked", b"Content-Length: 4"],
    "two lengths": [b"Content-Length: 4", b"Content-Length: 5"],
    "a list of lengths": [b"Content-Length: 4, 5"],
    "a signed length": [b"Content-Length: +4"],
    "a negative length": [b"Content-Length: -4"],
    "a hexadecimal length": [b"Content-Length: 0x4"],
    "a length with a space": [b"Content-Length: 4 4"],
    "a length beyond 64 bits": [b"Content-Length: 99999999999999999999999"],
    "a length with a space before the colon": [b"Content-Length : 4"],
    "chunked with a space before the colon": [b"Transfer-Encoding : chunked"],
    "chunked that is not last": [b"Transfer-Encoding: chunked, identity"],
    "an unknown encoding": [b"Transfer-Encoding: xchunked"],
    "a hidden encoding": [b"Transfer-Encoding: \x0bchunked"],
    "a folded encoding": [b"Transfer-Encoding:" + LINE + b" chunked"],
    "a folded header": [b"X-Folded: one" + LINE + b" Content-Length: 900", b"Content-Length: 4"],
    "a bare line feed": [b"X-One: 1\nContent-Length: 900", b"Content-Length: 4"],
    "a bare carriage return": [b"X-One: 1\rContent-Length: 900", b"Content-Length: 4"],
    "a null in a value": [b"X-One: 1\x00", b"Content-Length: 4"],
    "a null in a name": [b"X-\x00One: 1", b"Content-Length: 4"],
    "a line without a colon": [b"Content-Length 900", b"Content-Length: 4"],
    "a name that is empty": [b": 900", b"Content-Length: 4"],
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=list(SMUGGLING))
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_nothing_is_smuggled_past_the_end_of_a_request(stack: Stack, lines: list[bytes], path: str) -> None:
    key = stack.gateway.keys["app"]
    inner = request("POST", CHAT, key=key, body=body_for(SERVICE, "smuggled"))
    outer = b"POST %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % (path.encode(), key.encode())
    data = outer + LINE.join(lines) + b"\r\n\r\n0\r\n\r\n" + inner
    answers = exchange(stack, data)
    told = statuses(answers)
    assert told and told[0] in (400, 413) and len(told) == 1, answers
    assert not any(b"smuggled" in one.body for one in stack.service.requests)


CHUNKS = {
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "a size ended by a bare line feed": b"5\nhello\r\n0\r\n\r\n",
    "more than the size": b"5\r\nhello, world\r\n0\r\n\r\n",
    "no end of the chunk": b"5\r\nhello0\r\n\r\n",
    "an extension with a line feed": b"5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=list(CHUNKS))
def test_a_chunk_that_two_parsers_could_read_differently_is_refused(stack: Stack, chunks: bytes) -> None:
    key = stack.gateway.keys["app"]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head.encode() + chunks + request("POST", CHAT, key=key, body=body_for(SERVICE, "smuggled"))
    answers = exchange(stack, data)
    assert statuses(answers) in ([400], []), answers
    assert not any(b"smuggled" in one.body for one in stack.service.requests)


def test_two_correct_requests_in_one_packet_get_their_answers_in_order(stack: Stack) -> None:
    key = stack.gateway.keys["app"]
    both = b"".join(request("POST", CHAT, key=key, body=body_for(SERVICE, f"pipelined {n}")) for n in range(2))
    with connected(stack.gateway.port) as connection:
        connection.sendall(both)
        first = read_answer(connection)
        second = read_answer(connection, first.rest)
    assert [one.json["choices"][0]["message"]["content"] for one in (first, second)] == [
        "You asked: pipelined 0",
        "You asked: pipelined 1",
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nHost: a\r\n\r\n",
        b"CONNECT internal:22 HTTP/1.1\r\nHost: internal:22\r\n\r\n",
        b"NONSENSE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
        b"TRACE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/mod els HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\r\n\r\n\r\n" + b"\x00" * 100,
    ],
    ids=["http2", "tls", "http09", "version", "connect", "method", "trace", "space", "nulls"],
)
def test_what_is_no_request_to_us_is_refused(stack: Stack, data: bytes) -> None:
    answers = exchange(stack, data)
    assert all(400 <= status < 500 for status in statuses(answers)), answers
    assert b"Traceback" not in answers


def test_an_upgrade_is_not_taken(stack: Stack) -> None:
    lines = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    answers = exchange(stack, request("GET", "/v1/models", key=stack.gateway.keys["app"], headers=lines))
    assert b" 101 " not in answers and statuses(answers)[0] in (200, 400, 426)


# Headers


def test_only_our_own_headers_go_to_the_upstream(stack: Stack) -> None:
    lines = {
        "X-Request-Id": "mine",
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=10.0.0.1",
        "Cookie": "a=b",
        "Connection": "keep-alive, X-Tao-Tags",
        "Proxy-Authorization": "Basic x",
        "anthropic-dangerous-direct-browser-access": "true",
        "X-Evil": "1",
    }
    for path, model in ((CHAT, SERVICE), (MESSAGES, CLAUDE)):
        answer = ask(
            stack.gateway.port,
            request("POST", path, key=stack.gateway.keys["app"], body=body_for(model, "Hi"), headers=lines),
        )
        assert answer.status == 200 and answer.headers["x-request-id"].startswith("req_")
        got = stack.last(model).headers
        assert got["host"] == stack.upstream(model).url.removeprefix("http://")
        assert not {name.lower() for name in lines} - {"connection"} & got.keys(), got
        assert got.get("connection", "keep-alive") == "keep-alive"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anthropic-version", "2023-06-01\x0bX-Evil: 1"),
        ("anthropic-version", "\xff\xfe"),
        ("anthropic-beta", "a b\tX-Evil: 1"),
        ("anthropic-beta", "b" * 5000),
        ("X-Tao-Tags", "a=b\x0bX-Evil: 1"),
        ("traceparent", "00-x\tX-Evil: 1"),
    ],
)
def test_a_header_of_ours_cannot_carry_another(stack: Stack, name: str, value: str) -> None:
    data = request("POST", MESSAGES, key=stack.gateway.keys["app"], body=body_for(CLAUDE, "Hi"), headers={name: value})
    answer = ask(stack.gateway.port, data)
    assert answer.status in (200, 400)
    assert "x-evil" not in stack.last(CLAUDE).headers


@pytest.mark.parametrize(
    "model",
    ["a\r\nX-Evil: 1", "../../v1/models", "claude-opus-5-5\n", "\u0000", "x" * 100_000, "\ud800", "<script>", "%0d%0a"],
)
def test_a_model_name_stays_a_name(stack: Stack, model: str) -> None:
    for path in (CHAT, MESSAGES):
        answer = ask(
            stack.gateway.port, request("POST", path, key=stack.gateway.keys["app"], body=body_for(model, "Hi"))
        )
        assert answer.status in (400, 404) and len(answer.body) < 5000
        assert "x-evil" not in answer.headers
        row = stack.gateway.row(answer.headers["x-request-id"])
        assert row["model"] is None or len(row["model"]) < 300


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX" + b"a" * 70_000 + b": 1\r\n\r\n", 431),
    ],
    ids=["address", "value", "many", "name"],
)
def test_a_head_that_is_too_long_is_refused_and_logged(stack: Stack, data: bytes, status: int) -> None:
    before = len(stack.gateway.rows(f"http_status = {status}"))
    assert statuses(exchange(stack, data)) == [status]
    assert stack.gateway.rows(f"http_status = {status}", least=before + 1)[-1]["error_type"]


@pytest.mark.slow
def test_clients_that_never_finish_their_heads_are_shown_the_door(stack: Stack) -> None:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(connected(stack.gateway.port, timeout=30)) for _ in range(100)]
        for number, one in enumerate(sockets):
            one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" if number % 2 else b"")
        began = time.monotonic()
        answer = ask(stack.gateway.port, request("GET", READINESS))
        assert answer.status == 200 and time.monotonic() - began < 1, "others are served meanwhile"
        ends = []
        for number, one in enumerate(sockets):
            # A byte now and then must not keep it open.
            if number % 2:
                one.sendall(b"X: ")
            ends.append(read_all(one))
        assert time.monotonic() - began < 20
        assert all(end == b"" or b" 408 " in end for end in ends)


# What the gateway could be made to do for others


@pytest.mark.parametrize("model", [CLAUDE, SERVICE])
def test_the_gateway_fetches_no_address_that_a_caller_names(stack: Stack, model: str) -> None:
    with OpenAIService("canary") as canary:
        for url in (
            f"{canary.url}/image.png",
            f"{canary.url.replace('127.0.0.1', 'localhost')}/latest/meta-data",
            "http://169.254.169.254/latest/meta-data",
            "file:///etc/passwd",
            "gopher://127.0.0.1:1/",
        ):
            image = {"type": "image_url", "image_url": {"url": url}}
            source = {"type": "image", "source": {"type": "url", "url": url}}
            for path, block in ((CHAT, image), (MESSAGES, source)):
                body = body_for(model, "")
                body["messages"][0]["content"] = [{"type": "text", "text": "What?"}, block]
                answer = ask(stack.gateway.port, request("POST", path, key=stack.gateway.keys["app"], body=body))
                assert answer.status in (200, 400) and b"root:" not in answer.body
        time.sleep(0.2)
        assert canary.connected == 0


def test_every_wrong_key_gets_the_same_answer_and_costs_nothing(stack: Stack) -> None:
    key = stack.gateway.keys["app"]
    stack.gateway.add_caller("gone")
    gone = stack.gateway.keys["gone"]
    run_script("callers", "disable", "gone", env=stack.gateway.env)
    kinds = [key[:-1] + ("a" if key[-1] != "a" else "b"), key[:12] + "-x", "tao-00000000-" + "x" * 40, "x", gone, "é"]
    told = set()
    for wrong in kinds:
        answer = ask(
            stack.gateway.port, request("POST", CHAT, headers={"x-api-key": wrong}, body=body_for(SERVICE, "Hi"))
        )
        assert answer.status == 401
        told.add(answer.body.replace(answer.headers["x-request-id"].encode(), b""))
    assert len(told) == 1
    # A guesser does not become a load on the database, nor on those with a key.
    began = time.monotonic()
    with connected(stack.gateway.port) as connection:
        for number in range(300):
            connection.sendall(
                request("POST", CHAT, headers={"x-api-key": f"tao-{number:08d}-guess"}, body={"model": "x"})
            )
            assert read_answer(connection).status == 401
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("key", ["", "Bearer", "Basic dXNlcjpwYXNz", "Bearer  ", "bearer\tx", "Bearer " + "x" * 50_000])
def test_a_strange_authorization_is_a_401(stack: Stack, key: str) -> None:
    for path in (CHAT, MESSAGES):
        answer = ask(
            stack.gateway.port, request("POST", path, headers={"Authorization": key}, body=body_for(SERVICE, "Hi"))
        )
        assert answer.status == 401 and "error" in answer.json


@pytest.mark.parametrize("label", OPERATIONS)
def test_what_the_document_says_needs_a_key_needs_one(stack: Stack, label: str) -> None:
    method, _, path = label.partition(" ")
    open_to_all = DOCUMENT["paths"][path][method.lower()].get("security") == [{}]
    body = body_for(CLAUDE, "Hi") if method == "POST" else None
    for wrong in ("", "tao-00000000-wrong"):
        answer = ask(stack.gateway.port, request(method, path.replace("{model}", CLAUDE), key=wrong, body=body))
        assert answer.status == (200 if open_to_all else 401), answer


def test_a_key_beside_another_is_not_mixed_up_with_it(stack: Stack) -> None:
    lines = {"x-api-key": stack.gateway.keys["two-a-minute"]}
    data = request("POST", CHAT, key=stack.gateway.keys["app"], body=body_for(SERVICE, "Hi"), headers=lines)
    row = stack.gateway.row(ask(stack.gateway.port, data).headers["x-request-id"])
    assert row["caller"] == "app"


def test_a_key_that_stands_twice_in_the_body_means_one_thing_to_all(stack: Stack) -> None:
    body = b'{"model": "%b", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], "model": "%b"}'
    data = request("POST", MESSAGES, key=stack.gateway.keys["app"], body=body % (THINKER.encode(), CLAUDE.encode()))
    answer = ask(stack.gateway.port, data)
    row = stack.gateway.row(answer.headers["x-request-id"])
    assert answer.status == 400 or stack.last(CLAUDE).json["model"] == row["model"] == CLAUDE
    assert stack.last(CLAUDE).body.count(b'"model"') == 1 or answer.status == 400


def test_the_operators_endpoints_want_the_admin_key(stack: Stack) -> None:
    for path in ("/metrics", "/dashboard/data"):
        for key in ("", stack.gateway.keys["app"], stack.gateway.admin_key[:-1]):
            assert ask(stack.gateway.port, request("GET", path, key=key)).status in (401, 403)
        assert ask(stack.gateway.port, request("GET", path, key=stack.gateway.admin_key)).status == 200
    assert ask(stack.gateway.port, request("POST", CHAT, key=stack.gateway.admin_key, body={})).status == 401


@pytest.mark.parametrize(
    "query",
    ["&".join(f"a{n}=1" for n in range(60)), "since=99999-01-01", "since=1&until=0", "%ff=%fe", "range=" + "9" * 5000],
)
def test_a_strange_query_is_no_failure(stack: Stack, query: str) -> None:
    for path in ("/dashboard/data", "/v1/usage", "/v1/models", "/metrics"):
        key = stack.gateway.keys["app"] if path.startswith("/v1") else stack.gateway.admin_key
        assert ask(stack.gateway.port, request("GET", f"{path}?{query}", key=key)).status in (200, 400)


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
    answers = exchange(stack, data)
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

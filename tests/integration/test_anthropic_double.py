"""The double of Anthropic's API refuses what the real one refuses: tests that lean on it are worth what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from doubles.anthropic_api import AnthropicApi
from doubles.faults import Fault
from gateway_process import MESSAGES
from raw_http import Answer, ask, connected, read_until, request
from support import eventually

OLD, NEW = "2023-06-01", "2026-10-21"
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "t", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def api() -> Iterator[AnthropicApi]:
    with AnthropicApi() as api:
        yield api


def post(api: AnthropicApi, body: Any, version: str | None = OLD, key: str | None = None) -> Answer:
    lines = {} if version is None else {"anthropic-version": version}
    lines |= {"x-api-key": api.key if key is None else key} if key != "" else {}
    return ask(api.port, request("POST", MESSAGES, body=body, headers=lines))


def body_with(**fields: Any) -> dict[str, Any]:
    body = {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": HI, **fields}
    return {name: value for name, value in body.items() if value is not ...}


def image(**source: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "image", "source": source}]}]


def test_a_key_and_a_version_are_required(api: AnthropicApi) -> None:
    missing, wrong, unversioned = (
        post(api, body_with(), key=""),
        post(api, body_with(), key="x"),
        post(api, body_with(), None),
    )
    assert [one.status for one in (missing, wrong, unversioned)] == [401, 401, 400]
    assert missing.json["type"] == "error" and missing.json["error"]["type"] == "authentication_error"
    assert missing.json["request_id"] == missing.headers["request-id"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": ...}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"max_tokens": 10**6}, "maximum allowed"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "first message"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "non-empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "expected tags"),
        ({"n": 2}, "Extra inputs are not permitted"),
        ({"temperature": 1.5}, "range: 0..1"),
        ({"temperature": 0.5, "top_p": 0.5}, "cannot both be specified"),
        ({"model": "claude-opus-5", "temperature": 1}, "deprecated for this model"),
        ({"model": "claude-opus-5-5", "thinking": {"type": "disabled"}}, "thinking.type.disabled"),
        ({"model": "claude-opus-5-5", "tools": [TOOL], "tool_choice": {"type": "any"}}, "forces tool use"),
        ({"tool_choice": {"type": "any"}}, "while providing tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "not found in provided tools"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "should match pattern"),
        ({"messages": image(type="url", url="http://a/b.png")}, "HTTPS"),
        ({"messages": image(type="base64", media_type="image/bmp", data="AAAA")}, "media_type"),
        ({"messages": image(type="base64", media_type="image/png", data="@")}, "invalid base64"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "tool_use_id"),
        ({"stop_sequences": [" "]}, "non-whitespace"),
    ],
)
def test_what_the_real_one_refuses_is_refused(api: AnthropicApi, fields: dict[str, Any], words: str) -> None:
    answer = post(api, body_with(**fields))
    assert answer.status == 400 and words in answer.json["error"]["message"], answer.body


def test_the_version_decides_whether_sampling_values_exist(api: AnthropicApi) -> None:
    assert post(api, body_with(temperature=0.5), OLD).status == 200
    assert post(api, body_with(temperature=0.5), NEW).status == 400


def test_an_unknown_model_is_not_found_and_an_alias_is(api: AnthropicApi) -> None:
    assert post(api, body_with(model="claude-x")).json["error"]["type"] == "not_found_error"
    assert post(api, body_with(model="claude-haiku-4-5-20251001")).status == 200


def test_the_sdk_reads_what_it_streams(api: AnthropicApi) -> None:
    client = anthropic.Anthropic(api_key=api.key, base_url=api.url, max_retries=0)
    with client.messages.stream(model="claude-opus-5-5", max_tokens=50, messages=HI) as stream:  # type: ignore[arg-type]
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.usage.output_tokens == 13 and message.stop_reason == "end_turn"
    assert client.models.retrieve("claude-opus-5-5").max_tokens == 128_000


def test_a_stream_pings_and_counts_cumulatively(api: AnthropicApi) -> None:
    text = post(api, body_with(stream=True)).body.decode()
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names[0] == "message_start" and "ping" in names and names[-2:] == ["message_delta", "message_stop"]
    documents = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert documents[0]["message"]["usage"]["input_tokens"] == 4 and documents[-2]["usage"] == {"output_tokens": 3}


def test_it_fails_as_it_is_told(api: AnthropicApi) -> None:
    api.script(Fault(status=529), Fault(status=429, retry_after="7"), Fault(reset=True), Fault(garbage="body"))
    assert post(api, body_with()).json["error"]["type"] == "overloaded_error"
    assert post(api, body_with()).headers["retry-after"] == "7"
    assert post(api, body_with()).status == 0
    assert not post(api, body_with()).body.startswith(b"{")
    assert post(api, body_with()).status == 200
    told = body_with(messages=[{"role": "user", "content": "Hi [[status=500; times=2]]"}])
    assert [post(api, told).status for _ in range(3)] == [500, 500, 200]


def test_it_tells_who_left(api: AnthropicApi) -> None:
    told = body_with(messages=[{"role": "user", "content": "leaver [[words=99; token_delay=0.05]]"}], stream=True)
    data = request("POST", MESSAGES, body=told, headers={"x-api-key": api.key, "anthropic-version": OLD})
    with connected(api.port) as connection:
        connection.sendall(data)
        read_until(connection, b"word1")
    assert eventually(lambda: [one for one in api.requests if one.aborted and b"leaver" in one.body], timeout=5)
    control = ask(api.port, request("GET", f"/_double/requests?since={len(api.requests) - 1}"))
    assert control.json[0]["aborted"] is True and "leaver" in control.json[0]["body"]

"""Anthropic's requests as OpenAI's: valid by the SDK's own types, complete, or refused by the path of the field."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import completion_create_params

from inference_service.gateway.translation import anthropic_request, openai_request
from inference_service.gateway.translation.fields import Untranslatable

OPENAI = pydantic.TypeAdapter(completion_create_params.CompletionCreateParamsNonStreaming)
WEATHER = {"name": "weather", "description": "the weather", "input_schema": {"type": "object", "properties": {}}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def whole(body: dict[str, Any]) -> dict[str, Any]:
    return {"model": "smollm2", "max_tokens": 50, "messages": [user("hi")], **body}


def translated(body: dict[str, Any]) -> dict[str, Any]:
    request = anthropic_request.to_openai(whole(body))
    known = {name: value for name, value in request.items() if name not in ("top_k", "stream")}
    exhaust(OPENAI.validate_python(known, extra="forbid"))
    return request


def exhaust(value: Any) -> Any:
    """Pydantic validates an Iterable only where it is walked through."""
    if isinstance(value, dict):
        return {name: exhaust(item) for name, item in value.items()}
    if hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        return [exhaust(item) for item in value]
    return value


def messages(*given: dict[str, Any]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = translated({"messages": list(given)})["messages"]
    return result


def refused(body: dict[str, Any]) -> Untranslatable:
    with pytest.raises(Untranslatable) as caught:
        anthropic_request.to_openai(whole(body))
    return caught.value


def test_a_plain_request() -> None:
    assert translated(
        {
            "system": "be brief",
            "stop_sequences": ["END"],
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "metadata": {"user_id": "u-1"},
        }
    ) == {
        "model": "smollm2",
        "max_tokens": 50,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "stop": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "user": "u-1",
    }


def test_a_stream_is_asked_for_its_usage() -> None:
    request = translated({"stream": True})
    assert (request["stream"], request["stream_options"]) == (True, {"include_usage": True})
    assert "stream_options" not in translated({"stream": False})


def test_text_blocks_become_one_text_and_hints_for_the_cache_are_left_out() -> None:
    system = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    request = translated({"system": system, "messages": [user(system), {"role": "assistant", "content": system}]})
    assert [message["content"] for message in request["messages"]] == ["a\nb", "a\nb", "ab"]
    assert "cache_control" not in json.dumps(request)


def test_tool_results_become_messages_of_their_own_before_the_rest() -> None:
    assert messages(
        user("weather?"),
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, USE, {**USE, "id": "toolu_2"}]},
        user(
            [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [{"type": "text", "text": "no such city"}],
                    "is_error": True,
                },
                {"type": "text", "text": "so?"},
            ]
        ),
    )[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": f"toolu_{number}",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Köln"}'},
                }
                for number in (1, 2)
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no such city"},
        {"role": "user", "content": "so?"},
    ]


def test_thinking_of_earlier_answers_is_left_out() -> None:
    thinking = {"type": "thinking", "thinking": "secret thought", "signature": "c2lnbmVk"}
    redacted = {"type": "redacted_thinking", "data": "c2VjcmV0"}
    request = translated(
        {
            "messages": [
                user("a"),
                {"role": "assistant", "content": [thinking, redacted, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": [thinking]},
                {"role": "assistant", "content": [redacted, USE]},
            ]
        }
    )
    assert [message["content"] for message in request["messages"]] == ["a", "b", None]
    assert not any(word in json.dumps(request) for word in ("secret", "c2lnbmVk", "c2VjcmV0"))


def test_images_are_passed_on_and_never_fetched() -> None:
    blocks = [
        {"type": "text", "text": "what is it?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.jpg"}},
    ]
    assert messages(user(blocks))[0]["content"] == [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
    ]


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}, None),
    ],
)
def test_every_form_of_tool_choice(choice: dict[str, Any], expected: Any, parallel: bool | None) -> None:
    request = translated({"tools": [{**WEATHER, "type": "custom", "strict": True}], "tool_choice": choice})
    assert request["tool_choice"] == expected
    assert request.get("parallel_tool_calls") is parallel
    assert request["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "the weather",
                "parameters": {"type": "object", "properties": {}},
                "strict": True,
            },
        }
    ]


def test_the_output_format_and_the_effort() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    request = translated({"output_config": {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}})
    assert request["response_format"]["json_schema"] == {"name": "answer", "schema": schema, "strict": True}
    assert request["reasoning_effort"] == "low"


def test_what_makes_no_difference_is_left_out() -> None:
    request = translated(
        {
            "thinking": {"type": "adaptive"},
            "service_tier": "auto",
            "cache_control": {"type": "ephemeral"},
            "container": None,
            "tools": [],
            "tool_choice": {"type": "auto"},
        }
    )
    assert request.keys() == {"model", "max_tokens", "messages"}
    assert translated({"thinking": {"type": "disabled"}}).keys() == request.keys()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2_000}}, "thinking"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"colour": "red"}, "colour"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [3]}, "stop_sequences[0]"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [user(None)]}, "messages[0].content"),
        ({"messages": [user([{"type": "document", "source": {}}])]}, "messages[0].content[0].type"),
        ({"messages": [user([{"type": "thinking", "thinking": "x"}])]}, "messages[0].content[0].type"),
        (
            {"messages": [user([{"type": "image", "source": {"type": "file", "file_id": "f"}}])]},
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [user([{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}])]},
            "messages[0].content[0].source.url",
        ),
        (
            {"messages": [user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}])]},
            "messages[0].content[0].content[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
            "messages[0].content[0].type",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_config": {"length": 3}}, "output_config"),
    ],
)
def test_what_cannot_be_translated_is_named(body: dict[str, Any], field: str) -> None:
    assert refused(body).field == field


def test_there_and_back_again_says_the_same() -> None:
    original: dict[str, Any] = {
        "model": "claude-opus-4-6",
        "max_tokens": 50,
        "system": "be brief",
        "messages": [
            user("weather?"),
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, USE]},
            user(
                [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}, {"type": "text", "text": "so?"}]
            ),
        ],
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "metadata": {"user_id": "u"},
        "output_config": {"effort": "high"},
    }
    assert openai_request.to_anthropic(anthropic_request.to_openai(original)) == original


WORDS = st.sampled_from(
    ["user", "assistant", "text", "image", "tool_use", "tool_result", "thinking", "url", "auto", ""]
)
NAMES = ["type", "text", "source", "url", "content", "tool_use_id", "id", "name", "input", "is_error", "input_schema"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=15,
)


@given(
    st.dictionaries(st.sampled_from(sorted(anthropic_request._TRANSLATED - {"model", "messages"})), JSON, max_size=4),
    st.lists(st.fixed_dictionaries({"role": WORDS}, optional={"content": JSON}) | JSON, max_size=4),
)
def test_any_body_is_translated_or_refused_by_a_path(body: dict[str, Any], given_messages: list[Any]) -> None:
    body = whole({**body, "messages": given_messages})
    before = json.dumps(body)
    try:
        json.dumps(anthropic_request.to_openai(body))
    except Untranslatable as error:
        assert error.field.split("[")[0].split(".")[0] in body
    assert json.dumps(body) == before, "the client's body is left as it was"

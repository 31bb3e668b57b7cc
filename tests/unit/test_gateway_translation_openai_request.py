"""OpenAI's requests as Anthropic's: valid by the SDK's own types, complete, or refused by the path of the field."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pydantic
import pytest
from anthropic.types import message_create_params
from hypothesis import given
from hypothesis import strategies as st

from inference_service.gateway.translation import facts, openai_request
from inference_service.gateway.translation.fields import Untranslatable

ANTHROPIC = pydantic.TypeAdapter(message_create_params.MessageCreateParamsNonStreaming)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
EPHEMERAL = {"type": "ephemeral"}
PNG = "data:image/png;base64,iVBORw0KGgo="


def translated(body: dict[str, Any]) -> dict[str, Any]:
    request = openai_request.to_anthropic({"model": "claude-opus-4-6", "messages": [user("hi")], **body})
    # The SDK's types no longer have the sampling fields, which the API takes for older models.
    known = {k: v for k, v in request.items() if k not in ("temperature", "top_p", "top_k", "stream")}
    exhaust(ANTHROPIC.validate_python(known, extra="forbid"))
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
        openai_request.to_anthropic({"model": "claude-opus-4-6", "messages": [user("hi")], **body})
    assert caught.value.message.startswith(f"{caught.value.field}: ")
    return caught.value


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant_calls(function: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**CALL, "function": function}]}


def test_a_plain_request() -> None:
    assert translated({"max_tokens": 20, "temperature": 0.5, "stop": "END", "user": "u-1", "stream": True}) == {
        "model": "claude-opus-4-6",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "stream": True,
    }


def test_max_tokens_which_anthropic_requires_has_a_default() -> None:
    assert translated({})["max_tokens"] == facts.load().default_max_tokens
    assert (
        openai_request.to_anthropic({"model": "m", "messages": [user("hi")]}, max_tokens_default=9)["max_tokens"] == 9
    )
    assert translated({"max_tokens": 5, "max_completion_tokens": 6})["max_tokens"] == 6
    assert refused({"max_tokens": 0}).field == "max_tokens"
    assert refused({"max_completion_tokens": "9"}).field == "max_completion_tokens"


def test_system_and_developer_messages_keep_their_order_wherever_they_stand() -> None:
    request = translated(
        {
            "messages": [
                {"role": "system", "content": "one"},
                user("hi"),
                {"role": "developer", "content": [{"type": "text", "text": "two"}]},
                {"role": "system", "content": "three", "name": "boss"},
            ]
        }
    )
    assert [block["text"] for block in request["system"]] == ["one", "two", "three"]
    assert request["messages"] == [{"role": "user", "content": "hi"}]
    assert translated({"messages": [{"role": "system", "content": "one"}, user("hi")]})["system"] == "one"


def test_messages_of_one_role_become_one() -> None:
    assert messages(
        user("a"), user("b"), {"role": "assistant", "content": "c"}, {"role": "assistant", "content": "d"}
    ) == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ]


def test_tool_results_are_grouped_in_the_next_message() -> None:
    second = {**CALL, "id": "call_2", "function": {"name": "weather", "arguments": ""}}
    assert messages(
        user("weather?"),
        {"role": "assistant", "content": None, "refusal": None, "audio": None, "tool_calls": [CALL, second]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "sun"}]},
        user("so?"),
    )[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Köln"}},
                {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "sun"}]},
                {"type": "text", "text": "so?"},
            ],
        },
    ]


def test_an_assistants_message_without_content_is_left_out() -> None:
    assert messages(user("a"), {"role": "assistant", "content": ""}, {"role": "assistant", "content": "b"})[1:] == [
        {"role": "assistant", "content": "b"}
    ]
    assert messages(user("a"), {"role": "assistant", "content": None, "refusal": "no"})[1]["content"] == "no"


def test_images_are_passed_on_and_never_fetched() -> None:
    content = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
        {
            "type": "image_url",
            "image_url": {"url": "https://example.com/a.jpg"},
            "cache_control": {"type": "ephemeral"},
        },
    ]
    assert messages(user(content))[0]["content"][1:] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        {
            "type": "image",
            "source": {"type": "url", "url": "https://example.com/a.jpg"},
            "cache_control": {"type": "ephemeral"},
        },
    ]


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "data:image/tiff;base64,AA==", "data:image/png,%89", "data:;base64,AA==", "gs://b/o", ""],
)
def test_other_images_are_refused(url: str) -> None:
    error = refused({"messages": [user([{"type": "image_url", "image_url": {"url": url}}])]})
    assert error.field == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", None),
        (None, None),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
    ],
)
def test_every_form_of_tool_choice(choice: Any, expected: dict[str, Any] | None) -> None:
    request = translated({"tools": [WEATHER], "tool_choice": choice})
    assert request["tools"] == [{"name": "weather", "input_schema": {"type": "object", "properties": {}}}]
    assert request.get("tool_choice") == expected
    single = translated({"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False})["tool_choice"]
    if choice == "none":
        assert single == {"type": "none"}
    else:
        assert single == {**(expected or {"type": "auto"}), "disable_parallel_tool_use": True}


def test_allowed_tools_leave_the_others_out() -> None:
    other = {"type": "function", "function": {"name": "time", "description": "the time", "strict": True}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    request = translated(
        {"tools": [WEATHER, other], "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    )
    assert request["tools"] == [
        {
            "name": "time",
            "description": "the time",
            "input_schema": {"type": "object", "properties": {}},
            "strict": True,
        }
    ]
    assert request["tool_choice"] == {"type": "any"}


def test_a_json_schema_becomes_the_output_format_beside_the_effort() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    request = translated(
        {
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
            "reasoning_effort": "minimal",
        }
    )
    assert request["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert "output_config" not in translated({"response_format": {"type": "text"}})
    assert refused({"response_format": {"type": "json_object"}}).field == "response_format.type"
    assert refused({"response_format": {"type": "json_schema"}}).field == "response_format.json_schema"


def test_thinking_is_switched_off_where_it_can_be() -> None:
    assert translated({"reasoning_effort": "none"})["thinking"] == {"type": "disabled"}
    assert refused({"reasoning_effort": "none", "model": "claude-opus-5-5"}).field == "reasoning_effort"
    assert translated({"thinking": {"type": "adaptive"}})["thinking"] == {"type": "adaptive"}
    assert refused({"reasoning_effort": "utmost"}).field == "reasoning_effort"


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_sampling_goes_to_models_that_take_it(name: str) -> None:
    value = 40 if name == "top_k" else 0.3
    assert translated({name: value})[name] == value
    error = refused({name: value, "model": "claude-opus-5"})
    assert error.field == name
    assert "claude-opus-5" in error.message


def test_sampling_at_its_default_is_left_out() -> None:
    request = translated({"temperature": 1, "top_p": 1.0, "model": "claude-opus-5-5"})
    assert request.keys() == {"model", "max_tokens", "messages"}


def test_a_temperature_above_claudes_is_refused() -> None:
    assert "between 0 and 1" in refused({"temperature": 1.2}).message
    assert refused({"temperature": True}).field == "temperature"


def test_a_model_that_cannot_be_made_to_use_a_tool() -> None:
    forced = {"tools": [WEATHER], "tool_choice": "required", "model": "claude-opus-5-5"}
    assert refused(forced).field == "tool_choice"
    assert "tool_choice" not in translated({**forced, "tool_choice": "auto"})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"seed": 1}, "seed"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"store": True}, "store"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"colour": "red"}, "colour"),
        ({"stop": ["a", " "]}, "stop[1]"),
        ({"stop": 3}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "system", "content": "only"}]}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [user("")]}, "messages[0].content"),
        ({"messages": [user(None)]}, "messages[0].content"),
        ({"messages": [user("a"), {"role": "function", "name": "f", "content": "x"}]}, "messages[1].role"),
        ({"messages": [user([{"type": "text", "text": "a"}, {"type": "input_audio"}])]}, "messages[0].content[1].type"),
        ({"messages": [user([{"type": "file", "file": {"file_id": "f"}}])]}, "messages[0].content[0].type"),
        ({"messages": [user([{"type": "text"}])]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "3"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"stream": "yes"}, "stream"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_be_translated_is_named(body: dict[str, Any], field: str) -> None:
    assert refused(body).field == field


def test_what_makes_no_difference_is_left_out() -> None:
    request = translated(
        {
            "n": 1,
            "logprobs": False,
            "logit_bias": None,
            "seed": None,
            "frequency_penalty": 0.0,
            "presence_penalty": 0,
            "modalities": ["text"],
            "service_tier": "auto",
            "store": False,
            "metadata": {"run": "7"},
            "prompt_cache_key": "k",
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "stream_options": {"include_usage": True},
        }
    )
    assert request.keys() == {"model", "max_tokens", "messages"}


def test_whether_the_client_asked_for_usage() -> None:
    assert openai_request.includes_usage({"stream_options": {"include_usage": True}})
    assert not openai_request.includes_usage({"stream_options": {"include_usage": False}})
    assert not openai_request.includes_usage({"stream_options": None})
    with pytest.raises(Untranslatable, match="stream_options"):
        openai_request.includes_usage({"stream_options": []})


WORDS = st.sampled_from(
    ["user", "assistant", "tool", "system", "text", "image_url", "function", "auto", "{}", "claude-opus-5-5", PNG, ""]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "type",
                    "text",
                    "image_url",
                    "url",
                    "tool_calls",
                    "tool_call_id",
                    "id",
                    "function",
                    "name",
                    "arguments",
                    "parameters",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(
    st.dictionaries(st.sampled_from(sorted(openai_request._TRANSLATED - {"model", "messages"})), JSON, max_size=4),
    st.lists(
        st.fixed_dictionaries({"role": WORDS}, optional={"content": JSON, "tool_calls": JSON, "tool_call_id": JSON})
        | JSON,
        max_size=4,
    ),
)
def test_any_body_is_translated_or_refused_by_a_path(body: dict[str, Any], given_messages: list[Any]) -> None:
    body = {"model": "claude-opus-5-5", **body, "messages": given_messages}
    before = json.dumps(body)
    try:
        request = openai_request.to_anthropic(body)
    except Untranslatable as error:
        assert error.field.split("[")[0].split(".")[0] in body
    else:
        json.dumps(request)
        roles = [message["role"] for message in request["messages"]]
        assert all(a != b for a, b in itertools.pairwise(roles))
        assert all(message["content"] for message in request["messages"])
    assert json.dumps(body) == before, "the client's body is left as it was"

"""Answers of one format as those of the other: valid by the SDK's own models, with every token counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import wire_samples
from anthropic.types import Message
from hypothesis import given
from openai.types.chat import ChatCompletion
from wire_samples import Answer, Tool

from inference_service import metering
from inference_service.gateway.translation import anthropic_answer, openai_answer

CREATED = 1_790_000_000
TOOLS = (Tool("toolu_0", "weather", ('{"city":"Köln"}',)), Tool("toolu_1", "time", ()))


def to_openai(message: dict[str, Any]) -> ChatCompletion:
    return ChatCompletion.model_validate(openai_answer.from_anthropic(message, created=CREATED), strict=True)


def to_anthropic(completion: dict[str, Any]) -> Message:
    translated = anthropic_answer.from_openai(completion, answer_id="msg_own", model="own-model")
    return Message.model_validate(translated, strict=True)


def finished(**choice: Any) -> dict[str, Any]:
    completion = wire_samples.openai_completion(Answer(texts=("a",)))
    completion["choices"][0].update(choice)
    return completion


@given(wire_samples.answers())
def test_anthropics_answer_in_openais_format(answer: Answer) -> None:
    completion = to_openai(wire_samples.anthropic_message(answer))
    choice = completion.choices[0]
    assert choice.message.content == (answer.text or None)
    assert choice.finish_reason == answer.finish_reason
    calls = choice.message.tool_calls or []
    assert [(call.id, call.type) for call in calls] == [(tool.id, "function") for tool in answer.tools]
    assert [json.loads(call.function.arguments) for call in calls if call.type == "function"] == [
        tool.input for tool in answer.tools
    ]
    assert (completion.created, completion.model) == (CREATED, "claude-opus-5-5")


@given(wire_samples.answers())
def test_openais_answer_in_anthropics_format(answer: Answer) -> None:
    message = to_anthropic(wire_samples.openai_completion(answer))
    texts = [block.text for block in message.content if block.type == "text"]
    assert texts == ([answer.text] if answer.texts else [])
    uses = [(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"]
    assert uses == [(tool.id, tool.name, tool.input) for tool in answer.tools]
    assert message.stop_reason == answer.stop_reason
    assert (message.id, message.model) == ("chatcmpl-123", "smollm2")


@given(wire_samples.answers())
def test_thinking_is_in_no_answer(answer: Answer) -> None:
    thoughts = ("<secret thought 1>", "<secret thought 2>")
    answer = Answer(answer.texts, thoughts, answer.tools, answer.stop_reason, answer.finish_reason)
    for told in (
        to_openai(wire_samples.anthropic_message(answer)).to_json(),
        to_anthropic(wire_samples.openai_completion(answer)).to_json(),
    ):
        assert not any(secret in told for secret in ("secret thought", "c2lnbmVk", "c2VjcmV0"))


def test_every_token_is_in_the_usage() -> None:
    usage = to_openai(wire_samples.anthropic_message(Answer(texts=("a",)))).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (127, 42, 169)
    assert (usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens_details.cache_write_tokens) == (100, 20)
    back = to_anthropic(wire_samples.openai_completion(Answer(texts=("a",)))).usage
    assert (back.input_tokens, back.cache_read_input_tokens, back.cache_creation_input_tokens) == (7, 100, 20)


@given(wire_samples.answers())
def test_a_translated_usage_counts_the_same(answer: Answer) -> None:
    anthropic = anthropic_answer.usage(wire_samples.openai_usage(answer))
    assert metering.from_anthropic(anthropic) == metering.from_openai(wire_samples.openai_usage(answer))
    openai = metering.from_openai(openai_answer.usage(answer.usage) or {})
    counted = metering.from_anthropic(answer.usage)
    assert openai is not None
    assert counted is not None
    assert (openai.input_tokens, openai.output_tokens, openai.cached_tokens, openai.uncached_tokens) == (
        counted.input_tokens,
        counted.output_tokens,
        counted.cached_tokens,
        counted.uncached_tokens,
    )


def test_thinking_tokens_are_reasoning_tokens() -> None:
    usage = {"input_tokens": 1, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 5}}
    completion = to_openai({**wire_samples.anthropic_message(Answer(texts=("a",))), "usage": usage})
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens == 5


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "stop"),
        ("refusal", "content_filter"),
        ("model_context_window_exceeded", "length"),
        ("something_new", "stop"),
    ],
)
def test_why_claude_stopped(stop_reason: str, finish_reason: str) -> None:
    message = wire_samples.anthropic_message(Answer(texts=("a",), stop_reason=stop_reason))
    assert to_openai(message).choices[0].finish_reason == finish_reason


def test_a_refusal_tells_its_explanation() -> None:
    message = wire_samples.anthropic_message(Answer(stop_reason="refusal"))
    message["stop_details"] = {"type": "refusal", "category": "bio", "explanation": "This looks dangerous."}
    choice = to_openai(message).choices[0]
    assert (choice.finish_reason, choice.message.refusal) == ("content_filter", "This looks dangerous.")
    assert choice.message.content is None


@pytest.mark.parametrize(
    ("choice", "stop_reason", "sequence"),
    [
        ({"finish_reason": "stop"}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "stop_reason": 2}, "end_turn", None),
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "content_filter"}, "refusal", None),
        ({"finish_reason": None}, "end_turn", None),
        ({"finish_reason": "eos"}, "end_turn", None),
    ],
)
def test_why_a_service_stopped(choice: dict[str, Any], stop_reason: str, sequence: str | None) -> None:
    message = to_anthropic(finished(**choice))
    assert (message.stop_reason, message.stop_sequence) == (stop_reason, sequence)


def test_a_service_that_calls_tools_and_says_stop() -> None:
    answer = Answer(texts=("a",), tools=TOOLS, finish_reason="stop")
    assert to_anthropic(wire_samples.openai_completion(answer)).stop_reason == "tool_use"


def test_what_a_service_does_not_tell() -> None:
    message = to_anthropic({"choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]})
    assert (message.id, message.model) == ("msg_own", "own-model")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (0, 0)
    assert to_openai({**wire_samples.anthropic_message(Answer()), "usage": None}).usage is None


@pytest.mark.parametrize("arguments", ['{"city": ', "[1]", "sunny"])
def test_arguments_that_are_no_json_object_are_not_lost(arguments: str) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    message = to_anthropic(finished(message={"role": "assistant", "content": None, "tool_calls": [call]}))
    use = message.content[0]
    assert use.type == "tool_use"
    assert (use.id, use.input) == ("call_0", {anthropic_answer.UNREADABLE_ARGUMENTS: arguments})


@pytest.mark.parametrize(
    ("content", "text"),
    [([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"), ({"video": "x"}, '{"video":"x"}')],
)
def test_content_that_is_no_text(content: Any, text: str) -> None:
    block = to_anthropic(finished(message={"role": "assistant", "content": content})).content[0]
    assert block.type == "text"
    assert block.text == text


@pytest.mark.parametrize("junk", [{}, {"choices": []}, {"choices": [{}]}, {"content": None}, {"content": [{}]}, []])
def test_what_is_no_answer_is_said_so(junk: Any) -> None:
    errors = (KeyError, IndexError, TypeError, AttributeError)
    with pytest.raises(errors):
        openai_answer.from_anthropic(junk, created=CREATED)
    with pytest.raises(errors):
        anthropic_answer.from_openai(junk, answer_id="a", model="m")

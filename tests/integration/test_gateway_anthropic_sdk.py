"""The official `anthropic` client, unchanged, against the gateway: passed on to Claude, translated for a service."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from gateway_stack import CLAUDE, PIXEL, SERVICE, THINKER, WEATHER, Stack, gateway_stack, tags_of

BOTH = pytest.mark.parametrize("model", [CLAUDE, SERVICE])
TOOLS: Any = [{"name": "weather", "description": "now", "input_schema": WEATHER}]
TWO_CALLS = 'call weather with {"city": "Paris"} and call weather with {"city": "Rome"}'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway")) as stack:
        yield stack


def client(stack: Stack, caller: str = "app", **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key=stack.gateway.keys.get(caller, caller),
        base_url=stack.gateway.url,
        **{"max_retries": 0, "timeout": 30, **options},
    )


def user(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def ask(stack: Stack, model: str, content: Any, *, caller: str = "app", **options: Any) -> Any:
    known: dict[str, Any] = {"max_tokens": 500, "messages": user(content), **options}
    return client(stack, caller).messages.create(model=model, **known)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@BOTH
def test_an_answer_comes_with_its_text_its_end_and_its_usage(stack: Stack, model: str) -> None:
    answer = ask(stack, model, "What is the capital of France?")
    assert text_of(answer) == "You asked: What is the capital of France?"
    assert (answer.stop_reason, answer.role, answer.type) == ("end_turn", "assistant", "message")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 8)


@BOTH
def test_the_log_has_what_the_client_saw(stack: Stack, model: str) -> None:
    raw = client(stack).messages.with_raw_response.create(model=model, max_tokens=50, messages=user("one two three"))
    row = stack.gateway.row(raw.headers["x-request-id"])
    usage = raw.parse().usage
    assert (row["input_tokens"], row["output_tokens"]) == (usage.input_tokens, usage.output_tokens) == (6, 5)
    assert (row["caller"], row["http_status"], row["route"]) == ("app", 200, "/v1/messages")
    assert raw.headers["request-id"], "the SDK's _request_id"
    if model == CLAUDE:
        assert row["cost_usd"] is not None and row["upstream_request_id"].startswith("req_")


def test_what_the_client_sent_to_claude_arrives_as_it_was(stack: Stack) -> None:
    ask(stack, CLAUDE, "Hi", system="Be brief.", metadata={"user_id": "u-1"}, extra_headers={"anthropic-beta": "x-1"})
    seen = stack.last(CLAUDE)
    assert seen.json["system"] == "Be brief." and seen.json["metadata"] == {"user_id": "u-1"}
    assert seen.headers["anthropic-beta"] == "x-1"
    assert seen.headers["anthropic-version"] == anthropic._constants.ANTHROPIC_API_VERSION
    assert seen.headers["x-api-key"] == stack.claude.key and "authorization" not in seen.headers
    assert stack.gateway.keys["app"] not in json.dumps(seen.headers)


def test_both_headers_that_a_key_comes_in_are_taken(stack: Stack) -> None:
    key = stack.gateway.keys["app"]
    old = client(stack, default_headers={"X-Api-Key": key, "Authorization": anthropic.omit})
    answer = old.messages.create(model=CLAUDE, max_tokens=9, messages=user("Hi"))
    assert text_of(answer) == "You asked: Hi"


@BOTH
@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_system_prompt_reaches_the_model(stack: Stack, model: str, system: Any) -> None:
    ask(stack, model, "Hi", system=system)
    body = stack.last(model).json
    if model == SERVICE:
        assert body["messages"][0]["role"] == "system" and "Be brief." in json.dumps(body["messages"][0])
    else:
        assert body["system"] == system


@BOTH
@pytest.mark.parametrize("kind", ["base64", "url"])
def test_an_image_reaches_the_model(stack: Stack, model: str, kind: str) -> None:
    data = base64.b64encode(PIXEL).decode()
    source = {"type": "url", "url": "https://images.example/cat.png"}
    if kind == "base64":
        source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    assert text_of(ask(stack, model, content)) == "You asked: (1 images) What is it?"
    if model == SERVICE:
        items = stack.last(model).json["messages"][-1]["content"]
        url = next(item["image_url"]["url"] for item in items if item["type"] == "image_url")
        assert url == (f"data:image/png;base64,{data}" if kind == "base64" else source["url"])


@BOTH
def test_a_tool_is_called_and_its_result_goes_back(stack: Stack, model: str) -> None:
    messages = user(TWO_CALLS)
    answer = ask(stack, model, "", messages=messages, tools=TOOLS)
    uses = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert [use.input for use in uses] == [{"city": "Paris"}, {"city": "Rome"}]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "It rains."} for use in uses]
    messages += [{"role": "assistant", "content": answer.content}, *user(results)]
    assert "It rains." in text_of(ask(stack, model, "", messages=messages, tools=TOOLS))


@BOTH
def test_a_streamed_tool_call_puts_together_what_an_unstreamed_one_says(stack: Stack, model: str) -> None:
    with client(stack).messages.stream(model=model, max_tokens=500, messages=user(TWO_CALLS), tools=TOOLS) as stream:
        message = stream.get_final_message()
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [use.input for use in uses] == [{"city": "Paris"}, {"city": "Rome"}]
    assert message.stop_reason == "tool_use"


@BOTH
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_can_be_forced_and_forbidden(stack: Stack, model: str, choice: Any) -> None:
    assert ask(stack, model, "Hi", tools=TOOLS, tool_choice=choice).stop_reason == "tool_use"
    assert ask(stack, model, TWO_CALLS, tools=TOOLS, tool_choice={"type": "none"}).stop_reason == "end_turn"
    one = ask(stack, model, TWO_CALLS, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert len([block for block in one.content if block.type == "tool_use"]) == 1


@BOTH
def test_a_stop_text_and_the_most_tokens_end_the_answer(stack: Stack, model: str) -> None:
    stopped = ask(stack, model, "one two END three", stop_sequences=["END"])
    assert text_of(stopped) == "You asked: one two "
    if model == CLAUDE:
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "END")
    cut = ask(stack, model, "one two three", max_tokens=3)
    assert (text_of(cut), cut.stop_reason) == ("You asked: one ", "max_tokens")


@BOTH
def test_a_stream_has_the_same_text_and_usage_as_the_whole_answer(stack: Stack, model: str) -> None:
    whole = ask(stack, model, "one two three")
    with client(stack).messages.stream(model=model, max_tokens=500, messages=user("one two three")) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(pieces) == text_of(whole) == text_of(message) and len(pieces) > 2
    assert (message.usage.input_tokens, message.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )
    assert message.stop_reason == "end_turn"


@BOTH
def test_a_stream_has_the_events_of_the_protocol_in_their_order(stack: Stack, model: str) -> None:
    types = [event.type for event in ask(stack, model, "one two", stream=True)]
    assert types[0] == "message_start" and types[-2:] == ["message_delta", "message_stop"]
    assert types[1] == "content_block_start" and "content_block_stop" in types


@BOTH
def test_a_stream_is_logged_with_its_usage(stack: Stack, model: str) -> None:
    raw = client(stack).messages.with_raw_response.create(
        model=model, max_tokens=50, messages=user("one two three"), stream=True
    )
    list(raw.parse())
    row = stack.gateway.row(raw.headers["x-request-id"])
    assert (row["stream"], row["input_tokens"], row["output_tokens"]) == (1, 6, 5)
    assert (row["usage_estimated"], row["error_type"]) == (0, None)


def test_what_claude_thinks_comes_through_untouched_on_its_own_endpoint(stack: Stack) -> None:
    answer = ask(stack, THINKER, "Hi [[thinking=a secret thought]]")
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == "a secret thought" and answer.content[0].signature
    assert text_of(answer) == "You asked: Hi"


def test_what_the_cache_did_is_in_the_answer_and_in_the_row(stack: Stack) -> None:
    directive = "[[cache_read=1000; cache_write_5m=200; cache_write_1h=30]]"
    for stream in (False, True):
        raw = client(stack).messages.with_raw_response.create(
            model=CLAUDE, max_tokens=50, messages=user(f"Hi {directive}"), stream=stream
        )
        parsed: Any = raw.parse()
        usage = next(iter(parsed)).message.usage if stream else parsed.usage
        assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (1000, 230)
        row = stack.gateway.row(raw.headers["x-request-id"])
        assert (row["cached_tokens"], row["cache_write_5m_tokens"], row["cache_write_1h_tokens"]) == (1000, 200, 30)
        assert row["input_tokens"] == usage.input_tokens + 1230


def test_tokens_are_counted_without_being_spent(stack: Stack) -> None:
    counted = client(stack).messages.count_tokens(model=CLAUDE, messages=user("one two three"))
    assert counted.input_tokens == 6
    assert stack.last(CLAUDE).path == "/v1/messages/count_tokens"


def test_every_model_is_listed(stack: Stack) -> None:
    listed = {model.id: model for model in client(stack).models.list()}
    assert {SERVICE, "twin", THINKER} <= listed.keys()
    assert listed[THINKER].max_tokens == 128_000 and listed[THINKER].type == "model"
    assert client(stack).models.retrieve(THINKER).id == THINKER


def test_an_unknown_model_lists_the_choices(stack: Stack) -> None:
    with pytest.raises(anthropic.NotFoundError, match=SERVICE) as caught:
        ask(stack, "no-such-model", "Hi")
    assert "twin" in str(caught.value) and caught.value.type == "not_found_error"


def test_an_ambiguous_model_lists_the_choices(stack: Stack) -> None:
    with pytest.raises(anthropic.BadRequestError, match=SERVICE) as caught:
        ask(stack, "smollm2", "Hi")
    assert "twin" in str(caught.value) and caught.value.type == "invalid_request_error"


def test_a_wrong_key_is_refused(stack: Stack) -> None:
    for key in ("wrong", "tao-12345678-wrong", stack.gateway.keys["app"] + "x", stack.claude.key):
        with pytest.raises(anthropic.AuthenticationError) as caught:
            ask(stack, CLAUDE, "Hi", caller=key)
        assert caught.value.type == "authentication_error"
        assert caught.value.request_id


@BOTH
def test_a_rate_limit_of_the_upstream_is_the_clients_with_its_retry_after(stack: Stack, model: str) -> None:
    with pytest.raises(anthropic.RateLimitError) as caught:
        ask(stack, model, "Hi [[status=429; retry_after=77]]")
    assert caught.value.response.headers["retry-after"] == "77" and caught.value.type == "rate_limit_error"


def test_an_overloaded_vendor_is_the_sdks_own_error(stack: Stack) -> None:
    with pytest.raises(anthropic.OverloadedError) as caught:
        ask(stack, CLAUDE, "Hi [[status=529]]")
    assert caught.value.type == "overloaded_error"


@BOTH
def test_an_upstream_that_keeps_failing_is_an_internal_server_error(stack: Stack, model: str) -> None:
    with pytest.raises(anthropic.InternalServerError):
        ask(stack, model, f"Hi [[status=500; key={model}]]")


@BOTH
def test_a_stream_that_is_cut_is_an_error_and_no_end(stack: Stack, model: str) -> None:
    types = []
    with pytest.raises(Exception) as caught:
        for event in ask(stack, model, "a b c d e f [[cut_after=6]]", stream=True):
            types.append(event.type)
    # A connection that ends inside a stream the SDK leaves to its HTTP library.
    assert isinstance(caught.value, anthropic.APIError) or "RemoteProtocolError" in type(caught.value).__name__
    assert "message_stop" not in types and "content_block_delta" in types


@BOTH
def test_an_error_in_the_stream_is_the_sdks_error(stack: Stack, model: str) -> None:
    with pytest.raises(anthropic.APIError) as caught:
        list(ask(stack, model, "a b c d e f [[error_after=5]]", stream=True))
    assert ("Overloaded" if model == CLAUDE else "CUDA error") in str(caught.value)


def test_the_vendors_own_refusal_comes_through(stack: Stack) -> None:
    with pytest.raises(anthropic.BadRequestError, match="forces tool use"):
        ask(stack, THINKER, "Hi", tools=TOOLS, tool_choice={"type": "any"})
    with pytest.raises(anthropic.BadRequestError, match="at least one message"):
        ask(stack, CLAUDE, "", messages=[])
    with pytest.raises(anthropic.NotFoundError):
        ask(stack, "claude-instant-1", "Hi")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thinking", {"type": "enabled", "budget_tokens": 1024}),
        ("tools", [{"type": "web_search_20260209", "name": "w"}]),
    ],
)
def test_what_a_service_cannot_do_is_refused_by_its_name(stack: Stack, field: str, value: Any) -> None:
    before = len(stack.service.requests)
    with pytest.raises(anthropic.BadRequestError, match=field):
        ask(stack, SERVICE, "Hi", max_tokens=2000, **{field: value})
    assert len(stack.service.requests) == before


def test_tags_and_limits_hold_on_this_endpoint(stack: Stack) -> None:
    raw = client(stack).messages.with_raw_response.create(
        model=CLAUDE, max_tokens=9, messages=user("Hi"), extra_headers={"X-Tao-Tags": "feature=chat"}
    )
    assert tags_of(stack.gateway.row(raw.headers["x-request-id"])) == {"feature": "chat"}
    for _ in range(2):
        ask(stack, SERVICE, "Hi", caller="two-a-minute")
    with pytest.raises(anthropic.RateLimitError, match="requests") as caught:
        ask(stack, SERVICE, "Hi", caller="two-a-minute")
    assert 0 < float(caught.value.response.headers["retry-after"]) <= 60
    with pytest.raises(anthropic.PermissionDeniedError):
        ask(stack, SERVICE, "Hi", caller="claude-only")
    with pytest.raises(anthropic.RateLimitError, match="day"):
        ask(stack, CLAUDE, "Hi", caller="poor")


def test_many_streams_at_once_all_get_their_own_answer(stack: Stack) -> None:
    async def one(several: anthropic.AsyncAnthropic, number: int) -> str:
        model = (CLAUDE, SERVICE)[number % 2]
        async with several.messages.stream(
            model=model, max_tokens=50, messages=user(f"number {number} [[token_delay=0.01]]")
        ) as stream:
            return await stream.get_final_text()

    async def ask_all() -> list[str]:
        async with anthropic.AsyncAnthropic(
            api_key=stack.gateway.keys["app"], base_url=stack.gateway.url, max_retries=0, timeout=30
        ) as several:
            return await asyncio.gather(*(one(several, number) for number in range(40)))

    assert asyncio.run(ask_all()) == [f"You asked: number {number}" for number in range(40)]

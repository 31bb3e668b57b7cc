"""The official `openai` client, unchanged, against the gateway: Claude and a service of ours as models of one API."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from gateway_stack import CLAUDE, PIXEL, SERVICE, THINKER, WEATHER, Stack, gateway_stack, tags_of

BOTH = pytest.mark.parametrize("model", [CLAUDE, SERVICE])
DATA_URI = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "now", "parameters": WEATHER}}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway")) as stack:
        yield stack


def client(stack: Stack, caller: str = "app", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        api_key=stack.gateway.keys.get(caller, caller),
        base_url=f"{stack.gateway.url}/v1",
        **{"max_retries": 0, "timeout": 30, **options},
    )


def user(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def ask(stack: Stack, model: str, content: Any, *, caller: str = "app", **options: Any) -> Any:
    return client(stack, caller).chat.completions.create(model=model, messages=user(content), **options)


@BOTH
def test_an_answer_comes_with_its_text_its_end_and_its_usage(stack: Stack, model: str) -> None:
    answer = ask(stack, model, "What is the capital of France?")
    assert answer.choices[0].message.content == "You asked: What is the capital of France?"
    assert (answer.choices[0].finish_reason, answer.choices[0].message.role) == ("stop", "assistant")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 8)
    assert (answer.object, answer.usage.total_tokens) == ("chat.completion", 17)


@BOTH
def test_the_log_has_what_the_client_saw(stack: Stack, model: str) -> None:
    raw = client(stack).chat.completions.with_raw_response.create(model=model, messages=user("one two three"))
    row = stack.gateway.row(raw.headers["x-request-id"])
    usage = raw.parse().usage
    assert usage is not None
    assert (row["input_tokens"], row["output_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert (row["caller"], row["team"], row["project"]) == ("app", "web", "shop")
    assert (row["http_status"], row["error_type"], row["route"]) == (200, None, "/v1/chat/completions")
    assert 0 < row["first_byte_seconds"] <= row["total_seconds"]


@BOTH
def test_a_system_message_reaches_the_model_as_such(stack: Stack, model: str) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    client(stack).chat.completions.create(model=model, messages=messages)
    body = stack.last(model).json
    if model == SERVICE:
        assert body["messages"] == messages
    else:
        assert "Be brief." in json.dumps(body["system"]) and [one["role"] for one in body["messages"]] == ["user"]


@BOTH
@pytest.mark.parametrize("url", [DATA_URI, "https://images.example/cat.png"])
def test_an_image_reaches_the_model(stack: Stack, model: str, url: str) -> None:
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    answer = ask(stack, model, content)
    assert answer.choices[0].message.content == "You asked: (1 images) What is it?"
    if model == CLAUDE:
        source = next(block for block in stack.last(model).json["messages"][0]["content"] if block["type"] == "image")
        if url == DATA_URI:
            assert source["source"]["media_type"] == "image/png"
            assert base64.b64decode(source["source"]["data"]) == PIXEL
        else:
            assert source["source"] == {"type": "url", "url": url}


@BOTH
def test_a_tool_is_called_and_its_result_goes_back(stack: Stack, model: str) -> None:
    messages: Any = user('call weather with {"city": "Paris"} and call weather with {"city": "Rome"}')
    answer = client(stack).chat.completions.create(model=model, messages=messages, tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.tool_calls
    given = [json.loads(call.function.arguments) for call in message.tool_calls if call.type == "function"]
    assert given == [{"city": "Paris"}, {"city": "Rome"}]
    messages += [message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "It rains."} for call in message.tool_calls]
    after = client(stack).chat.completions.create(model=model, messages=messages, tools=TOOLS)
    assert "It rains." in (after.choices[0].message.content or "")


@BOTH
def test_a_streamed_tool_call_puts_together_what_an_unstreamed_one_says(stack: Stack, model: str) -> None:
    content = 'call weather with {"city": "Paris"} and call weather with {"city": "Rome"}'
    calls: dict[int, dict[str, str]] = {}
    finish = None
    for chunk in ask(stack, model, content, tools=TOOLS, stream=True):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += part.id or ""
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
    assert finish == "tool_calls"
    assert [json.loads(call["arguments"]) for call in calls.values()] == [{"city": "Paris"}, {"city": "Rome"}]
    assert all(call["id"] and call["name"] == "weather" for call in calls.values())


@BOTH
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_can_be_forced_and_forbidden(stack: Stack, model: str, choice: Any) -> None:
    assert ask(stack, model, "Hi", tools=TOOLS, tool_choice=choice).choices[0].message.tool_calls
    content = 'call weather with {"city": "Rome"}'
    assert not ask(stack, model, content, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls
    two = ask(stack, model, f"{content} {content}", tools=TOOLS, parallel_tool_calls=False)
    assert len(two.choices[0].message.tool_calls) == 1


@BOTH
@pytest.mark.parametrize("stop", ["END", ["nothing", "END"]])
def test_a_stop_text_ends_the_answer(stack: Stack, model: str, stop: Any) -> None:
    answer = ask(stack, model, "one two END three", stop=stop)
    assert answer.choices[0].message.content == "You asked: one two "
    assert answer.choices[0].finish_reason == "stop"


@BOTH
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_is_too_long_says_so(stack: Stack, model: str, field: str) -> None:
    limit: dict[str, Any] = {field: 3}
    answer = ask(stack, model, "one two three four", **limit)
    assert answer.choices[0].message.content == "You asked: one "
    assert answer.choices[0].finish_reason == "length"


@BOTH
def test_a_stream_has_the_same_text_and_usage_as_the_whole_answer(stack: Stack, model: str) -> None:
    whole = ask(stack, model, "one two three")
    chunks = list(ask(stack, model, "one two three", stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert sum(1 for chunk in chunks for choice in chunk.choices if choice.delta.content) > 2, "it came in pieces"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@BOTH
def test_a_stream_without_usage_shows_none_but_is_logged_with_it(stack: Stack, model: str) -> None:
    raw = client(stack).chat.completions.with_raw_response.create(
        model=model, messages=user("one two three"), stream=True
    )
    chunks = list(raw.parse())
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    row = stack.gateway.row(raw.headers["x-request-id"])
    assert (row["stream"], row["input_tokens"], row["output_tokens"]) == (1, 6, 5)
    assert row["first_token_seconds"] is not None and not row["usage_estimated"]


def test_claude_is_priced_alike_streamed_and_unstreamed(stack: Stack) -> None:
    costs = []
    for stream in (False, True):
        raw = client(stack).chat.completions.with_raw_response.create(
            model=CLAUDE, messages=user("one two three"), stream=stream
        )
        if stream:
            list(raw.parse())
        costs.append(stack.gateway.row(raw.headers["x-request-id"]))
    assert costs[0]["cost_usd"] == costs[1]["cost_usd"] is not None
    assert costs[0]["priced_by"] == costs[1]["priced_by"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_model_thinks_is_never_in_the_text(stack: Stack, stream: bool) -> None:
    answer = ask(stack, THINKER, "Hi [[thinking=a secret thought]]", stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    else:
        text = answer.choices[0].message.content
    assert text == "You asked: Hi"


def test_a_stream_passes_on_while_it_is_made(stack: Stack) -> None:
    # The double waits between the words; were the stream held back, the first would come with the last.
    moments = []
    loop = asyncio.new_event_loop()
    for chunk in ask(stack, CLAUDE, "a b c d e [[token_delay=0.1]]", stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            moments.append(loop.time())
    loop.close()
    assert moments[-1] - moments[0] > 0.3


def test_every_model_is_listed(stack: Stack) -> None:
    listed = {model.id: model for model in client(stack).models.list()}
    assert {SERVICE, "twin", THINKER} <= listed.keys()
    assert listed[SERVICE].object == "model"
    assert client(stack).models.retrieve(SERVICE).id == SERVICE


def test_an_unknown_model_lists_the_choices(stack: Stack) -> None:
    with pytest.raises(openai.NotFoundError, match=SERVICE) as caught:
        ask(stack, "no-such-model", "Hi")
    assert "twin" in str(caught.value)
    assert stack.gateway.row(caught.value.response.headers["x-request-id"])["error_type"] == "unknown_model"


def test_an_ambiguous_model_lists_the_choices(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError, match=SERVICE) as caught:
        ask(stack, "smollm2", "Hi")
    assert "twin" in str(caught.value) and caught.value.param == "model"
    assert stack.gateway.row(caught.value.response.headers["x-request-id"])["error_type"] == "ambiguous_model"


def test_a_wrong_key_is_refused_and_logged(stack: Stack) -> None:
    before = len(stack.claude.requests)
    for key in ("wrong", "tao-12345678-wrong", stack.gateway.keys["app"] + "x", stack.claude.key):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(stack, CLAUDE, "Hi", caller=key)
        row = stack.gateway.row(caught.value.response.headers["x-request-id"])
        assert (row["http_status"], row["error_type"], row["caller_id"]) == (401, "unauthenticated", None)
    assert len(stack.claude.requests) == before


def test_the_callers_key_never_reaches_the_vendor(stack: Stack) -> None:
    ask(stack, CLAUDE, "Hi")
    headers = stack.last(CLAUDE).headers
    assert headers["x-api-key"] == stack.claude.key
    assert stack.gateway.keys["app"] not in json.dumps(headers)


@BOTH
def test_a_rate_limit_of_the_upstream_is_the_clients_with_its_retry_after(stack: Stack, model: str) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        ask(stack, model, "Hi [[status=429; retry_after=77]]")
    assert caught.value.response.headers["retry-after"] == "77"


@BOTH
@pytest.mark.parametrize("status", [500, 529])
def test_an_upstream_that_keeps_failing_is_an_internal_server_error(stack: Stack, model: str, status: int) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(stack, model, f"Hi [[status={status}; key={model}]]")
    row = stack.gateway.row(caught.value.response.headers["x-request-id"])
    assert row["error_type"].startswith("upstream_") and row["retries"] > 0


@BOTH
def test_an_upstream_that_fails_once_is_asked_again(stack: Stack, model: str) -> None:
    raw = client(stack).chat.completions.with_raw_response.create(
        model=model, messages=user("Hi [[status=500; times=1; key=once]]")
    )
    assert raw.parse().choices[0].message.content == "You asked: Hi"
    assert stack.gateway.row(raw.headers["x-request-id"])["retries"] == 1


@BOTH
def test_a_stream_that_is_cut_is_an_error_and_no_end(stack: Stack, model: str) -> None:
    stream = ask(stack, model, "a b c d e f [[cut_after=4]]", stream=True)
    finished = []
    with pytest.raises(openai.APIError):
        for chunk in stream:
            finished += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
    assert finished == []


@BOTH
def test_an_error_in_the_stream_is_the_sdks_error(stack: Stack, model: str) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(ask(stack, model, "a b c d e f [[error_after=4]]", stream=True))
    assert ("Overloaded" if model == CLAUDE else "CUDA error") in str(caught.value)


@BOTH
def test_an_upstream_that_resets_every_connection_cannot_be_reached(stack: Stack, model: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(stack, model, "Hi [[reset=1]]")
    assert caught.value.status_code in (502, 503)


def test_what_a_model_does_not_take_is_a_bad_request_that_names_it(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(stack, THINKER, "Hi", temperature=0.5)
    with pytest.raises(openai.BadRequestError, match="tool"):
        ask(stack, THINKER, "Hi", tools=TOOLS, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="64000"):
        ask(stack, CLAUDE, "Hi", max_tokens=100_000)  # the vendor's own words


def test_a_temperature_reaches_a_model_that_takes_it(stack: Stack) -> None:
    ask(stack, CLAUDE, "Hi", temperature=0.25)
    assert stack.last(CLAUDE).json["temperature"] == 0.25


@pytest.mark.parametrize(
    ("field", "value"), [("n", 2), ("logprobs", True), ("logit_bias", {"50256": -100}), ("modalities", ["audio"])]
)
def test_what_cannot_be_translated_is_refused_by_its_name(stack: Stack, field: str, value: Any) -> None:
    before = len(stack.claude.requests)
    with pytest.raises(openai.BadRequestError, match=field) as caught:
        ask(stack, CLAUDE, "Hi", **{field: value})
    assert caught.value.param == field and len(stack.claude.requests) == before


@BOTH
@pytest.mark.parametrize(
    "body", [{}, {"messages": []}, {"messages": "hi"}, {"messages": [{"role": "nobody", "content": "x"}]}]
)
def test_a_body_that_is_none_is_a_bad_request(stack: Stack, model: str, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client(stack).post("/chat/completions", body={"model": model, **body}, cast_to=object)


def test_tags_are_in_the_log(stack: Stack) -> None:
    raw = client(stack).chat.completions.with_raw_response.create(
        model=SERVICE, messages=user("Hi"), extra_headers={"X-Tao-Tags": "feature=search,user=u-7"}
    )
    assert tags_of(stack.gateway.row(raw.headers["x-request-id"])) == {"feature": "search", "user": "u-7"}
    assert "x-tao-tags" not in stack.last(SERVICE).headers


def test_one_request_too_many_is_told_which_limit_and_when_to_come_back(stack: Stack) -> None:
    for _ in range(2):
        ask(stack, SERVICE, "Hi", caller="two-a-minute")
    before = len(stack.service.requests)
    with pytest.raises(openai.RateLimitError, match="requests") as caught:
        ask(stack, SERVICE, "Hi", caller="two-a-minute")
    assert 0 < float(caught.value.response.headers["retry-after"]) <= 60
    assert len(stack.service.requests) == before
    row = stack.gateway.row(caught.value.response.headers["x-request-id"])
    assert (row["http_status"], row["error_type"]) == (429, "rate_limited_requests")


def test_too_many_tokens_are_refused_before_they_are_asked_for(stack: Stack) -> None:
    with pytest.raises(openai.RateLimitError, match="tokens"):
        ask(stack, SERVICE, "Hi", caller="few-tokens", max_tokens=5000)


def test_a_budget_that_would_be_passed_refuses_before_anything_is_spent(stack: Stack) -> None:
    before = len(stack.claude.requests)
    with pytest.raises(openai.RateLimitError, match="day"):
        ask(stack, CLAUDE, "Hi", caller="poor", max_tokens=50)
    assert len(stack.claude.requests) == before


def test_a_caller_cannot_use_a_model_that_it_may_not(stack: Stack) -> None:
    assert ask(stack, CLAUDE, "Hi", caller="claude-only").choices
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask(stack, SERVICE, "Hi", caller="claude-only")
    row = stack.gateway.row(caught.value.response.headers["x-request-id"])
    assert row["error_type"] == "model_not_allowed"
    assert {model.id for model in client(stack, "claude-only").models.list()} <= {CLAUDE, CLAUDE + "-20251001"}


def test_many_at_once_all_get_their_own_answer(stack: Stack) -> None:
    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(
            api_key=stack.gateway.keys["app"], base_url=f"{stack.gateway.url}/v1", max_retries=0, timeout=30
        ) as several:
            return await asyncio.gather(
                *(
                    several.chat.completions.create(model=(CLAUDE, SERVICE)[n % 2], messages=user(f"number {n}"))
                    for n in range(40)
                )
            )

    answers = asyncio.run(ask_all())
    assert [one.choices[0].message.content for one in answers] == [f"You asked: number {n}" for n in range(40)]

"""Translated streams: the SDKs put together what the translated unstreamed answer is, wherever the stream was cut."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import orjson
import pytest
import sdk_streams
import wire_samples
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter
from wire_samples import Answer, Tool

from inference_service import metering
from inference_service.gateway import tapping
from inference_service.gateway.translation import anthropic_answer, openai_answer
from inference_service.gateway.translation.anthropic_stream import OpenAIToAnthropic
from inference_service.gateway.translation.openai_stream import AnthropicToOpenAI

CREATED = 1_790_000_000
CUTS = st.lists(st.integers(0, 100_000), max_size=40)
ENDS = st.sampled_from(["\n", "\r\n"])
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ANSWER = Answer(
    texts=("Hello", ' "usage":{', " it's\nfine é😀", "data: [DONE]\n\n", "!"),
    thoughts=("<secret>",),
    tools=(Tool("toolu_0", "weather", ('{"city": "Kö', 'ln"}')), Tool("toolu_1", "time", ())),
    stop_reason="tool_use",
    finish_reason="tool_calls",
)


def to_openai(include_usage: bool = True) -> AnthropicToOpenAI:
    return AnthropicToOpenAI(created=CREATED, include_usage=include_usage)


def to_anthropic() -> OpenAIToAnthropic:
    return OpenAIToAnthropic(answer_id="msg_own", model="own-model")


def run(translation: tapping.StreamReader, stream: bytes, cuts: list[int] | None = None) -> bytes:
    return b"".join([*map(translation.feed, wire_samples.cut(stream, cuts or [])), translation.end()])


def data_of(stream: bytes) -> list[Any]:
    """The JSON of each event."""
    lines = [line[5:] for line in stream.split(b"\n") if line.startswith(b"data:")]
    return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]


@settings(max_examples=60)
@given(wire_samples.answers(), CUTS, st.booleans(), ENDS)
def test_the_openai_sdk_puts_claudes_answer_together(answer: Answer, cuts: list[int], padding: bool, end: str) -> None:
    translation = to_openai()
    stream = run(translation, wire_samples.anthropic_stream(answer, padding=padding, end=end), cuts)
    for event in data_of(stream):
        ChatCompletionChunk.model_validate(event, strict=True)
    unstreamed = ChatCompletion.model_validate(
        openai_answer.from_anthropic(wire_samples.anthropic_message(answer), created=CREATED)
    )
    try:
        whole = sdk_streams.openai_accumulated(stream)
    except openai.LengthFinishReasonError as error:  # The SDK's helper raises it where finish_reason is length.
        assert answer.finish_reason == "length"
        assert error.completion.choices[0].message.content == unstreamed.choices[0].message.content
        return
    assert comparable_completion(whole) == comparable_completion(unstreamed)
    assert stream.endswith(b"data: [DONE]\n\n")
    assert translation.usage == metering.from_anthropic(answer.usage)
    assert (translation.finished, translation.finish_reason) == (True, answer.stop_reason)


def comparable_completion(completion: Any) -> dict[str, Any]:
    """The answer without what only the SDK's helper adds, its arguments parsed, as JSON may be written in many ways."""
    document: dict[str, Any] = completion.model_dump(exclude_none=True, mode="json")
    document["object"] = "chat.completion"
    for choice in document["choices"]:
        for call in choice["message"].get("tool_calls") or []:
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if not choice["message"].get("tool_calls"):
            choice["message"].pop("tool_calls", None)
    return document


@settings(max_examples=60)
@given(wire_samples.answers(), CUTS, st.booleans(), ENDS)
def test_the_anthropic_sdk_puts_a_services_answer_together(
    answer: Answer, cuts: list[int], spaces: bool, end: str
) -> None:
    translation = to_anthropic()
    stream = run(translation, wire_samples.openai_stream(answer, spaces=spaces, end=end), cuts)
    for event in data_of(stream):
        EVENT.validate_python(event, strict=True)
    unstreamed = Message.model_validate(
        anthropic_answer.from_openai(wire_samples.openai_completion(answer), answer_id="msg_own", model="own-model")
    )
    texts: list[str] = []
    whole = sdk_streams.anthropic_accumulated(stream, texts.append)
    assert comparable_message(whole) == comparable_message(unstreamed)
    assert "".join(texts) == answer.text
    assert translation.usage == metering.from_openai(wire_samples.openai_usage(answer))
    assert (translation.finished, translation.finish_reason) == (True, answer.finish_reason)


def comparable_message(message: Message) -> dict[str, Any]:
    document = message.model_dump(exclude_none=True, mode="json")
    for block in document["content"]:
        block.pop("parsed_output", None)
    return document


@pytest.mark.parametrize(
    ("make", "stream"),
    [
        (to_openai, wire_samples.anthropic_stream(ANSWER)),
        (to_openai, wire_samples.anthropic_stream(ANSWER, padding=True, end="\r\n")),
        (to_anthropic, wire_samples.openai_stream(ANSWER)),
        (to_anthropic, wire_samples.openai_stream(ANSWER, spaces=True, end="\r\n")),
    ],
)
def test_two_pieces_become_the_same_as_one_wherever_the_cut_is(make: Any, stream: bytes) -> None:
    whole = make()
    expected = whole.feed(stream) + whole.end()
    assert whole.finished
    for place in range(len(stream) + 1):
        cut = make()
        assert cut.feed(stream[:place]) + cut.feed(stream[place:]) + cut.end() == expected
        assert (cut.usage, cut.produced_bytes, cut.deltas) == (whole.usage, whole.produced_bytes, whole.deltas)


@pytest.mark.parametrize(
    ("make", "tap", "stream"),
    [
        (to_openai, tapping.AnthropicTap, wire_samples.anthropic_stream(ANSWER)),
        (to_anthropic, tapping.OpenAITap, wire_samples.openai_stream(ANSWER)),
    ],
)
def test_a_translated_stream_costs_what_the_same_stream_costs_passed_on(make: Any, tap: Any, stream: bytes) -> None:
    for place in (len(stream), len(stream) // 2):
        translation, passed_on = make(), tap()
        run(translation, stream[:place])
        passed_on.feed(stream[:place])
        passed_on.end()
        assert translation.usage == passed_on.usage
        assert translation.finished == passed_on.finished
        assert translation.finish_reason == passed_on.finish_reason
        names = sum(len(tool.name) for tool in ANSWER.tools) if tap is tapping.OpenAITap else 0
        assert translation.produced_bytes <= passed_on.produced_bytes <= translation.produced_bytes + names


@pytest.mark.parametrize(
    ("make", "stream", "end"),
    [
        (to_openai, wire_samples.anthropic_stream(ANSWER), b"\ndata: [DONE]\n"),
        (to_anthropic, wire_samples.openai_stream(ANSWER), b"event: message_stop"),
    ],
)
def test_a_stream_that_is_cut_ends_with_an_error_and_never_as_if_it_were_whole(
    make: Any, stream: bytes, end: bytes
) -> None:
    for place in range(len(stream.rstrip()) - 1):
        translation = make()
        sent = run(translation, stream[:place])
        assert end not in sent
        assert (translation.finished, translation.error_type) == (False, "cut")
        last = data_of(sent)[-1]
        assert last["error"]["message"] == "the upstream's answer stopped before its end"
        assert translation.end() == translation.feed(stream[place:]) == b""


def test_both_sdks_raise_on_a_cut_stream() -> None:
    stream = wire_samples.anthropic_stream(ANSWER)
    with pytest.raises(openai.APIError, match="stopped before its end"):
        sdk_streams.openai_chunks(run(to_openai(), stream[: len(stream) // 2]))
    stream = wire_samples.openai_stream(ANSWER)
    with pytest.raises(anthropic.APIStatusError, match="stopped before its end"):
        sdk_streams.anthropic_accumulated(run(to_anthropic(), stream[: len(stream) // 2]))


def test_an_error_in_the_middle_of_claudes_stream_is_one_for_the_openai_sdk() -> None:
    begun = wire_samples.anthropic_stream(ANSWER).partition(b"event: content_block_stop")[0]
    event = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    translation = to_openai()
    stream = run(translation, begun + event + wire_samples.anthropic_stream(ANSWER))
    with pytest.raises(openai.APIError, match="Overloaded") as caught:
        sdk_streams.openai_chunks(stream)
    assert (caught.value.type, caught.value.code) == ("overloaded_error", "overloaded_error")
    assert translation.error_type == "overloaded_error"
    assert not translation.finished
    assert stream.endswith(b'"code":"overloaded_error"}}\n\n'), "nothing follows an error"


@pytest.mark.parametrize(
    ("event", "kind", "error_type"),
    [
        (
            b'data: {"error":{"message":"no memory","type":"server_error","code":503}}\n\n',
            "overloaded_error",
            "server_error",
        ),
        (b'data: {"error":"no memory"}\n\n', "api_error", "error"),
        (
            b'data: {"object":"error","message":"no memory","type":"BadRequestError","code":400}\n\n',
            "invalid_request_error",
            "BadRequestError",
        ),
        (b'error: {"code":500,"message":"no memory","type":"server_error"}\n\n', "api_error", "server_error"),
    ],
)
def test_an_error_in_the_middle_of_a_services_stream_is_one_for_the_anthropic_sdk(
    event: bytes, kind: str, error_type: str
) -> None:
    begun = wire_samples.openai_stream(ANSWER).partition(b"\n\n")[0] + b"\n\n"
    translation = to_anthropic()
    stream = run(translation, begun + event + wire_samples.openai_stream(ANSWER))
    with pytest.raises(anthropic.APIStatusError, match="no memory"):
        sdk_streams.anthropic_accumulated(stream)
    assert data_of(stream)[-1] == {"type": "error", "error": {"type": kind, "message": "no memory"}}
    assert translation.error_type == error_type


@pytest.mark.parametrize("make", [to_openai, to_anthropic])
@pytest.mark.parametrize(
    "junk",
    [b"data: {\n\n", b"data: []\n\n", b"data: 3\n\n", b"data: {}\n\n", b'data: {"type":"content_block_delta"}\n\n'],
)
def test_what_is_no_event_is_an_error(make: Any, junk: bytes) -> None:
    translation = make()
    stream = run(translation, junk)
    assert translation.error_type == "bad_answer"
    assert "cannot be read" in data_of(stream)[-1]["error"]["message"]


@pytest.mark.parametrize("make", [to_openai, to_anthropic])
def test_a_line_that_never_ends_does_not_fill_the_memory(make: Any) -> None:
    translation = make()
    sent = b"".join(translation.feed(b"data: " + b"x" * 1_000_000) for _ in range(20))
    assert translation.error_type == "bad_answer"
    assert "longer than" in data_of(sent)[-1]["error"]["message"]
    assert not translation._begun


@pytest.mark.parametrize("make", [to_openai, to_anthropic])
@given(stream=st.binary(max_size=200), cuts=CUTS)
def test_no_bytes_break_a_translation(make: Any, stream: bytes, cuts: list[int]) -> None:
    translation = make()
    sent = run(translation, b"data: " + stream, cuts)
    assert not translation.finished
    assert data_of(sent)[-1]["error"]


@pytest.mark.parametrize("make", [to_openai, to_anthropic])
@given(
    documents=st.lists(
        st.recursive(
            st.none() | st.integers() | st.sampled_from(["message_start", "content_block_start", "tool_use", "x"]),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "type",
                            "message",
                            "id",
                            "model",
                            "content_block",
                            "delta",
                            "index",
                            "choices",
                            "tool_calls",
                            "usage",
                        ]
                    ),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=10,
        ),
        max_size=4,
    )
)
def test_no_event_breaks_a_translation(make: Any, documents: list[Any]) -> None:
    translation = make()
    sent = run(translation, b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents))
    assert not translation.finished
    assert data_of(sent)[-1]["error"]


def test_signs_of_life_are_passed_on() -> None:
    assert to_openai().feed(b'event: ping\ndata: {"type": "ping"}\n\n') == b": ping\n\n"
    assert to_openai().feed(b": waiting\n\n") == b": ping\n\n"
    assert to_anthropic().feed(b": keep-alive\n\n") == b'event: ping\ndata: {"type": "ping"}\n\n'


def test_the_usage_comes_only_to_who_asked_for_it() -> None:
    without = run(to_openai(include_usage=False), wire_samples.anthropic_stream(ANSWER))
    assert b"usage" not in without.replace(b'\\"usage\\"', b"")
    chunks = sdk_streams.openai_chunks(run(to_openai(), wire_samples.anthropic_stream(ANSWER)))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []


@pytest.mark.parametrize("make", [to_openai, to_anthropic])
def test_thinking_is_in_no_stream(make: Any) -> None:
    source = wire_samples.anthropic_stream if make is to_openai else wire_samples.openai_stream
    translation = make()
    stream = run(translation, source(ANSWER))
    assert not any(secret in stream for secret in (b"secret", b"c2lnbmVk", b"c2VjcmV0", b"signature"))
    assert translation.produced_bytes >= len("<secret>" + ANSWER.text), "but it is paid for"


def test_a_refusal_in_a_stream_tells_its_explanation() -> None:
    stream = wire_samples.anthropic_stream(Answer(texts=("Well,",), stop_reason="refusal"))
    details = b'"stop_sequence":null,"stop_details":{"type":"refusal","category":"bio","explanation":"dangerous"}}'
    chunks = sdk_streams.openai_chunks(run(to_openai(), stream.replace(b'"stop_sequence":null}', details)))
    assert "dangerous" in [chunk.choices[0].delta.refusal for chunk in chunks if chunk.choices]
    assert chunks[-2].choices[0].finish_reason == "content_filter"


def test_tool_calls_whose_pieces_are_mixed_come_one_after_the_other() -> None:
    def chunk(*calls: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"tool_calls": list(calls)}, "finish_reason": finish_reason}
        return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"

    def part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        return {"index": index, "function": {"arguments": arguments, **more}}

    pieces = [
        chunk({**part(0, '{"a"', name="f"), "id": "c0"}),
        chunk({**part(1, '{"b"', name="g"), "id": "c1"}),
        chunk(part(0, ": 1}"), part(1, ": 2}")),
        chunk(finish_reason="tool_calls"),
    ]
    stream = run(to_anthropic(), b"".join(pieces) + b"data: [DONE]\n\n")
    starts = [event["index"] for event in data_of(stream) if "index" in event]
    assert starts == sorted(starts)
    message = sdk_streams.anthropic_accumulated(stream)
    assert [(use.name, use.input) for use in message.content if use.type == "tool_use"] == [
        ("f", {"a": 1}),
        ("g", {"b": 2}),
    ]


def test_a_stream_without_an_answer_is_no_answer() -> None:
    translation = to_anthropic()
    assert b"no answer" in translation.feed(b"data: [DONE]\n\n")
    assert not translation.finished
    ended = to_openai()
    assert b"error" in ended.feed(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert not ended.finished


@pytest.mark.parametrize(("make", "source"), [(to_openai, "anthropic_stream"), (to_anthropic, "openai_stream")])
def test_pieces_of_text_in_one_envelope_are_parsed_once(
    make: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(texts=("first", *(f"word {number}\n" for number in range(200))))
    stream = getattr(wire_samples, source)(answer, **({"padding": True} if make is to_openai else {}))
    parsed: list[bytes] = []
    really = orjson.loads

    def loads(data: bytes) -> Any:
        parsed.append(data)
        return really(data)

    monkeypatch.setattr(orjson, "loads", loads)
    translation = make()
    sent = run(translation, stream)
    events = [data for data in parsed if not data.startswith(b'"')]
    assert len(events) < 10
    assert translation.deltas == 201
    assert all(orjson.dumps(text) in sent for text in answer.texts)


def test_text_that_looks_like_an_envelope_goes_through_as_text() -> None:
    before = 'data: {"choices":[{"index":0,"delta":{"content":"'
    texts = (
        "a",
        "b",
        '"},"finish_reason":"stop"}],"x":{"y":"',
        before,
        '"}}',
        "\\",
        '\\"',
        "\n\ndata: [DONE]\n\n",
        "z",
    )
    for make, source in ((to_anthropic, wire_samples.openai_stream), (to_openai, wire_samples.anthropic_stream)):
        translation = make()
        stream = run(translation, source(Answer(texts=texts)))
        assert translation.produced_bytes == len("".join(texts))
        if make is to_anthropic:
            block = sdk_streams.anthropic_accumulated(stream).content[0]
            assert block.type == "text"
            assert block.text == "".join(texts)
        else:
            assert sdk_streams.openai_accumulated(stream).choices[0].message.content == "".join(texts)


def test_text_after_a_tool_call_is_a_block_of_its_own() -> None:
    deltas: list[dict[str, Any]] = [
        {"content": "a"},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"content": "b"},
        {"content": "c"},
        {"refusal": "no"},
        {"content": "d"},
    ]
    chunks = [{"id": "i", "model": "m", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    message = sdk_streams.anthropic_accumulated(run(to_anthropic(), stream.encode()))
    assert [getattr(block, "text", block.type) for block in message.content] == ["a", "tool_use", "bc", "no", "d"]


ENVELOPES = [
    {"content": "TEXT"},
    {"content": "TEXT", "role": "assistant"},
    {"role": "assistant", "content": "TEXT"},
    {"content": "TEXT", "reasoning_content": "<secret>"},
    {"reasoning_content": "<secret>", "content": "TEXT"},
    {"content": "TEXT", "tool_calls": None},
]


@given(
    st.lists(st.tuples(st.sampled_from(ENVELOPES), wire_samples.TEXT, st.sampled_from([None, "length"])), max_size=12)
)
def test_chunks_in_changing_envelopes_are_told_apart(
    events: list[tuple[dict[str, Any], str, str | None]],
) -> None:
    stream = b""
    for delta, text, finished in events:
        written = json.loads(json.dumps(delta).replace('"TEXT"', json.dumps(text)))
        choice = {"index": 0, "delta": written, "finish_reason": finished}
        stream += b"data: " + orjson.dumps({"id": "i", "model": "m", "choices": [choice]}) + b"\n\n"
    translation = to_anthropic()
    sent = run(translation, stream + b'data: {"choices": []}\n\ndata: [DONE]\n\n')
    texts = [event["delta"]["text"] for event in data_of(sent) if event["type"] == "content_block_delta"]
    assert texts == [text for _, text, _ in events]
    stopped = [event["delta"]["stop_reason"] for event in data_of(sent) if event["type"] == "message_delta"]
    assert stopped == ["max_tokens" if any(finished for _, _, finished in events) else "end_turn"]
    hidden = sum(len("<secret>") for delta, _, _ in events if "reasoning_content" in delta)
    assert translation.produced_bytes == sum(len(text.encode()) for text in texts) + hidden

"""Taps: right wherever the stream is cut and whatever its text says, and without parsing what is only text."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
import wire_samples
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import Answer, Tool

from inference_service import metering
from inference_service.gateway import tapping
from inference_service.gateway.tapping import AnthropicTap, OpenAITap, usage_of_answer
from inference_service.metering import Usage

CUTS = st.lists(st.integers(0, 100_000), max_size=40)
ENDS = st.sampled_from(["\n", "\r\n"])
ANSWER = Answer(
    texts=("Hello", ' "usage":{"output_tokens":9}', " it's\nfine é", "message_stop", "data: [DONE]\n\n", '\\"}}', "!"),
    thoughts=("hm",),
    tools=(Tool("toolu_0", "weather", ('{"city": "Par', 'is"}')),),
    stop_reason="tool_use",
    finish_reason="tool_calls",
)


def produced(answer: Answer, *names: str) -> int:
    parts = [*answer.texts, *answer.thoughts, *(part for tool in answer.tools for part in tool.arguments), *names]
    return sum(len(part.encode()) for part in parts)


def state(tap: tapping.StreamReader) -> tuple[Any, ...]:
    return (tap.finished, tap.error_type, tap.finish_reason, tap.first_token, tap.produced_bytes, tap.deltas, tap.usage)


@given(wire_samples.answers(), CUTS, st.booleans(), ENDS)
def test_an_anthropic_stream_is_read_wherever_it_is_cut(
    answer: Answer, cuts: list[int], padding: bool, end: str
) -> None:
    stream = wire_samples.anthropic_stream(answer, padding=padding, end=end)
    tap = AnthropicTap()
    sent = b"".join([*map(tap.feed, wire_samples.cut(stream, cuts)), tap.end()])
    assert sent == stream
    assert tap.usage == metering.from_anthropic(answer.usage)
    assert (tap.finished, tap.error_type, tap.finish_reason) == (True, None, answer.stop_reason)
    assert tap.produced_bytes == produced(answer)
    assert tap.first_token == (tap.deltas > 0) == (produced(answer) > 0)


@given(wire_samples.answers(), CUTS, st.booleans(), ENDS, st.booleans())
def test_an_openai_stream_is_read_wherever_it_is_cut(
    answer: Answer, cuts: list[int], spaces: bool, end: str, strip: bool
) -> None:
    stream = wire_samples.openai_stream(answer, spaces=spaces, end=end)
    tap = OpenAITap(strip_usage=strip)
    sent = b"".join([*map(tap.feed, wire_samples.cut(stream, cuts)), tap.end()])
    if strip:
        events = [event for event in stream.decode().split(f"{end}{end}") if '"prompt_tokens"' not in event]
        assert sent.decode() == f"{end}{end}".join(events)
    else:
        assert sent == stream
    assert tap.usage == metering.from_openai(wire_samples.openai_usage(answer))
    assert (tap.finished, tap.error_type, tap.finish_reason) == (True, None, answer.finish_reason)
    assert tap.produced_bytes == produced(answer, *(tool.name for tool in answer.tools))


@pytest.mark.parametrize(
    ("stream", "tap"),
    [
        (wire_samples.anthropic_stream(ANSWER), AnthropicTap),
        (wire_samples.anthropic_stream(ANSWER, padding=True, end="\r\n"), AnthropicTap),
        (wire_samples.openai_stream(ANSWER), OpenAITap),
        (wire_samples.openai_stream(ANSWER, spaces=True), lambda: OpenAITap(strip_usage=True)),
    ],
)
def test_two_pieces_tell_the_same_as_one_wherever_the_cut_is(stream: bytes, tap: Any) -> None:
    whole = tap()
    sent = whole.feed(stream) + whole.end()
    for place in range(len(stream) + 1):
        cut = tap()
        assert cut.feed(stream[:place]) + cut.feed(stream[place:]) + cut.end() == sent
        assert state(cut) == state(whole)


@pytest.mark.parametrize("tap", [AnthropicTap(), OpenAITap()])
def test_what_is_passed_on_is_the_same_object(tap: tapping.StreamReader) -> None:
    for stream in (wire_samples.anthropic_stream(ANSWER), wire_samples.openai_stream(ANSWER)):
        assert tap.feed(stream) is stream


@pytest.mark.parametrize(
    ("tap", "event"),
    [
        (
            AnthropicTap(),
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
            '{"type":"text_delta","text":"word %d"}}\n\n',
        ),
        (
            OpenAITap(),
            'data: {"id":"c","choices":[{"index":0,"delta":{"content":"word %d"},"finish_reason":null}]}\n\n',
        ),
        (OpenAITap(True), 'data: {"choices": [{"index": 0, "delta": {"content": "word %d"}}], "usage": null}\r\n\r\n'),
    ],
)
def test_events_in_one_envelope_are_parsed_once(
    tap: tapping.StreamReader, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    really = orjson.loads

    def loads(data: bytes) -> Any:
        parsed.append(data)
        return really(data)

    monkeypatch.setattr(orjson, "loads", loads)
    for number in range(1_000):
        tap.feed((event % number).encode())
    assert len(parsed) == 1
    tap.feed((event.replace("word %d", 'a \\"b\\" \\n')).encode())
    assert parsed[1:] == [b'"a \\"b\\" \\n"'], "of a text with escapes the text alone is parsed"
    for _ in range(100):
        tap.feed((event % 7 + event % 8).encode())
    assert len(parsed) == 2
    assert tap.deltas == 1_201
    words = sum(len(f"word {number}") for number in range(1_000)) + 200 * len("word 7")
    assert tap.produced_bytes == words + len('a "b" \n')


def test_usage_is_found_after_events_in_the_same_envelope() -> None:
    tap = OpenAITap()
    for text, usage in (("a", None), ("b", None), ("c", {"prompt_tokens": 3, "completion_tokens": 3})):
        chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": usage}
        tap.feed(f"data: {json.dumps(chunk)}\n\n".encode())
    assert tap.usage == Usage(3, 3)
    assert (tap.deltas, tap.produced_bytes) == (3, 3)


def test_usage_beside_choices_is_not_stripped() -> None:
    chunk = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":3,"completion_tokens":3}}\n\n'
    )
    tap = OpenAITap(strip_usage=True)
    assert tap.feed(chunk) == chunk
    assert tap.usage == Usage(3, 3)


@pytest.mark.parametrize(
    ("tap", "event", "error_type"),
    [
        (
            AnthropicTap(),
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
            "overloaded_error",
        ),
        (OpenAITap(), b'data: {"error":{"message":"out of memory","type":"server_error"}}\n\n', "server_error"),
        (
            OpenAITap(),
            b'data: {"object":"error","message":"no","type":"BadRequestError","code":400}\n\n',
            "BadRequestError",
        ),
        (OpenAITap(), b'error: {"code":500,"message":"slot lost"}\n\n', "error"),
        (OpenAITap(True), b'data: {"error": "out of memory"}\n\n', "error"),
    ],
)
def test_an_error_in_the_middle_of_a_stream_is_seen(tap: tapping.StreamReader, event: bytes, error_type: str) -> None:
    streams = {AnthropicTap: wire_samples.anthropic_stream(ANSWER), OpenAITap: wire_samples.openai_stream(ANSWER)}
    tap.feed(
        streams[type(tap)].split(b"message_delta")[0].split(b'"finish_reason":"')[0].rpartition(b"\n\n")[0] + b"\n\n"
    )
    for place in range(0, len(event), 7):
        tap.feed(event[place : place + 7])
    tap.end()
    assert tap.error_type == error_type
    assert not tap.finished


def test_a_cut_stream_is_not_finished_and_its_usage_is_estimated() -> None:
    stream = wire_samples.anthropic_stream(ANSWER)
    tap = AnthropicTap()
    tap.feed(stream[: stream.index(b"content_block_stop")])
    tap.end()
    assert not tap.finished
    assert tap.usage is not None
    assert tap.usage.output_tokens == 1
    estimated = tap.estimate(body_bytes=5_000)
    assert estimated.estimated
    assert estimated.input_tokens == tap.usage.input_tokens == 127
    assert estimated.output_tokens == max(tap.deltas, -(-tap.produced_bytes // metering.BYTES_PER_TOKEN))

    other = OpenAITap()
    other.feed(wire_samples.openai_stream(ANSWER)[:900])
    assert other.usage is None
    assert other.estimate(body_bytes=300).input_tokens == 100


def test_a_long_line_is_passed_on_and_not_kept() -> None:
    for strip in (False, True):
        tap = OpenAITap(strip_usage=strip)
        picture = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"A" * 300_000 + b'"}}]}\n\n'
        stream = picture + wire_samples.openai_stream(ANSWER, usage=not strip)
        sent = [tap.feed(stream[at : at + 10_000]) for at in range(0, len(stream), 10_000)]
        assert b"".join(sent) == stream
        assert sum(map(len, sent[:10])) > 60_000, "the client waits for no end of a line that is long"
        assert len(tap._rest) == 0
        assert tap.finished
        assert tap.finish_reason == "tool_calls"


def test_a_line_without_an_end_counts_when_the_stream_ends() -> None:
    tap = OpenAITap(strip_usage=True)
    assert tap.feed(b"data: [DONE]") == b""
    assert not tap.finished
    assert tap.end() == b"data: [DONE]"
    assert tap.finished


@given(st.binary(max_size=300), CUTS, st.booleans())
def test_no_bytes_break_a_tap(stream: bytes, cuts: list[int], strip: bool) -> None:
    for tap in (AnthropicTap(), OpenAITap(strip_usage=strip)):
        sent = b"".join([*map(tap.feed, wire_samples.cut(stream, cuts)), tap.end()])
        whole_lines = stream[: stream.rfind(b"\n") + 1]
        assert sent in (stream, whole_lines, whole_lines + b"\n")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["error", "message_delta", "message_start", "x"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "usage",
                        "delta",
                        "message",
                        "error",
                        "choices",
                        "finish_reason",
                        "tool_calls",
                        "function",
                        "text",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_no_event_breaks_a_tap_or_an_answer(document: Any) -> None:
    data = json.dumps(document).encode()
    for tap in (AnthropicTap(), OpenAITap(strip_usage=True)):
        tap.feed(b"data: " + data + b"\n\n")
        assert isinstance(tap.estimate(1), Usage)
    usage_of_answer("openai", data)
    usage_of_answer("anthropic", data)


def test_the_usage_of_an_unstreamed_answer_is_that_of_the_stream() -> None:
    anthropic = usage_of_answer("anthropic", orjson.dumps(wire_samples.anthropic_message(ANSWER)))
    assert anthropic == (metering.from_anthropic(ANSWER.usage), "tool_use", None)
    openai = usage_of_answer("openai", orjson.dumps(wire_samples.openai_completion(ANSWER)))
    assert openai == (metering.from_openai(wire_samples.openai_usage(ANSWER)), "tool_calls", None)


@pytest.mark.parametrize(
    ("shape", "body", "expected"),
    [
        ("anthropic", b'{"type":"error","error":{"type":"rate_limit_error","message":"m"}}', "rate_limit_error"),
        ("openai", b'{"error":{"message":"m","type":"invalid_request_error","code":null}}', "invalid_request_error"),
        ("openai", b'{"error":"model_loading"}', "error"),
        ("openai", b"<html>", None),
        ("openai", b"[]", None),
        ("openai", b'{"choices":[{"finish_reason":null}]}', None),
    ],
)
def test_an_answer_without_usage_has_none(shape: tapping.Shape, body: bytes, expected: str | None) -> None:
    assert usage_of_answer(shape, body) == (None, None, expected)


@pytest.mark.parametrize(
    ("tap", "stream"),
    [(AnthropicTap, wire_samples.anthropic_stream(ANSWER)), (OpenAITap, wire_samples.openai_stream(ANSWER))],
)
def test_an_event_can_follow_wherever_a_stream_is_cut(tap: Any, stream: bytes) -> None:
    for place in range(len(stream) - 2):
        reader = tap()
        sent = reader.feed(stream[:place]) + reader.end()
        assert not reader.finished
        events = [event for event in sent.split(b"\n\n") if b"data:" in event]
        assert all(event + b"\n\n" in stream for event in events), "none is half"
        assert sent[-2:] in (b"", b"\n\n")


def test_a_stream_is_finished_when_its_last_event_is_whole() -> None:
    for tap, stream in (
        (AnthropicTap(), wire_samples.anthropic_stream(ANSWER)),
        (OpenAITap(), wire_samples.openai_stream(ANSWER)),
    ):
        sent = tap.feed(stream[:-1])
        assert not tap.finished
        assert sent + tap.feed(b"\n") == stream
        assert tap.finished


ENVELOPES = [
    {"content": "TEXT"},
    {"content": "TEXT", "role": "assistant"},
    {"role": "assistant", "content": "TEXT"},
    {"content": "TEXT", "reasoning_content": "thought"},
    {"reasoning_content": "TEXT"},
    {"tool_calls": [{"index": 0, "function": {"arguments": "TEXT"}}]},
]


@given(st.lists(st.tuples(st.sampled_from(ENVELOPES), wire_samples.TEXT, st.sampled_from([None, "stop"])), max_size=12))
def test_events_in_changing_envelopes_are_told_apart(events: list[tuple[dict[str, Any], str, str | None]]) -> None:
    tap = OpenAITap()
    expected = 0
    finish_reason = None
    for delta, text, finished in events:
        written = json.loads(json.dumps(delta).replace('"TEXT"', json.dumps(text)))
        chunk = {"choices": [{"index": 0, "delta": written, "finish_reason": finished}]}
        tap.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
        expected += len(text.encode()) + (len("thought") if "thought" in delta.values() else 0)
        finish_reason = finished or finish_reason
    assert tap.produced_bytes == expected
    assert tap.deltas == len(events)
    assert tap.finish_reason == finish_reason

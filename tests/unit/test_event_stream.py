"""Server-sent events, however they are cut into pieces, and the completion that they carry."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import event_stream
from inference_service.errors import ToolError


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def chunk(text: str | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return (
        b"data: "
        + json.dumps({"choices": [{"delta": delta, "finish_reason": finish_reason}], **more}).encode()
        + b"\n\n"
    )


def collect(*pieces: bytes) -> tuple[Any, list[str]]:
    texts: list[str] = []
    return event_stream.collect(pieces, texts.append), texts


LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(
    sent=st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    places=st.lists(st.integers(0, 10_000)),
    comment=st.booleans(),
)
def test_events_survive_any_cut_and_any_line_end(
    sent: list[list[str]], end: str, places: list[int], comment: bool
) -> None:
    text = ""
    for lines in sent:
        text += f": keep-alive{end}" if comment else ""
        text += f"event: message{end}id: 7{end}" + "".join(f"data: {line}{end}" for line in lines) + end
    assert list(event_stream.events(cut(text.encode(), places))) == ["\n".join(lines) for lines in sent]


def test_byte_order_mark_missing_space_and_missing_last_blank_line_are_taken() -> None:
    assert list(event_stream.events([b"\xef\xbb", b"\xbfdata:a\n\ndata\n\n:x\n\ndata:  b"])) == ["a", "", " b"]


@given(st.lists(st.integers(0, 2000)))
def test_a_streamed_completion_is_put_together(places: list[int]) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    data = (
        b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
        + chunk("grü")
        + chunk("ße 😀")
        + chunk(finish_reason="length")
        + b"data: "
        + json.dumps({"choices": [], "usage": usage}).encode()
        + b"\n\ndata: [DONE]\n\ndata: not looked at"
    )
    completion, texts = collect(*cut(data, places))
    assert (completion.content, completion.finish_reason, completion.usage) == ("grüße 😀", "length", usage)
    assert texts == ["grü", "ße 😀"]


def test_a_stream_that_ends_before_its_end_is_an_error_after_the_text_that_came() -> None:
    texts: list[str] = []
    with pytest.raises(ToolError, match="after 2 characters") as caught:
        event_stream.collect([chunk("ab")], texts.append)
    assert caught.value.type == "answer_cut_off"
    assert texts == ["ab"]


def test_an_error_in_the_middle_is_told_in_the_service_s_words() -> None:
    with pytest.raises(ToolError, match="CUDA out of memory") as caught:
        collect(chunk("ab"), b'data: {"error": {"message": "CUDA out of memory", "type": "internal_error"}}\n\n')
    assert caught.value.type == "failed_while_streaming"


@pytest.mark.parametrize(
    "data",
    [b"<html>", b"[]", b"3", b'{"choices": 3}', b'{"choices": [3]}', b'{"choices": [{"delta": {"content": 3}}]}'],
)
def test_an_event_that_is_no_chunk_is_an_error_with_its_first_bytes(data: bytes) -> None:
    with pytest.raises(ToolError) as caught:
        collect(b"data: " + data + b"\n\n")
    assert caught.value.type == "invalid_answer"
    assert data.decode() in caught.value.message

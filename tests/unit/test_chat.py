"""The body that is sent, and the answer that is believed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import chat, references
from inference_service.body import InlinedFile
from inference_service.errors import BadInput, ToolError
from inference_service.media import MediaItem


def answer(**changes: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}], **changes}


def parse(document: Any) -> chat.Completion:
    return chat.parse_completion(json.dumps(document).encode())


def test_media_come_before_one_text_in_one_user_message(tmp_path: Path) -> None:
    local = MediaItem("video", None, tmp_path / "x.mp4", "video/mp4", 7)
    web = MediaItem("image", "https://example.com/x.png", None, "image/png", None)
    prompt = chat.prompt_of(["first", "second"])
    body = chat.request_body(
        references.load().arch("cosmos-rl"), prompt, "Be brief.", [local, web], {"top_k": 3}, False
    )
    assert body == {
        "model": "cosmos-rl",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "video_url", "video_url": {"url": InlinedFile(tmp_path / "x.mp4", "video/mp4", 7)}},
                    {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
                    {"type": "text", "text": "first\n\nsecond"},
                ],
            },
        ],
        "top_k": 3,
    }


def test_standard_input_is_one_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("über\n".encode())))
    assert chat.prompt_of(["Translate:", "-"]) == "Translate:\n\nüber\n"


def test_standard_input_is_read_once_and_as_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="more than once"):
        chat.prompt_of(["-", "-"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff")))
    with pytest.raises(BadInput, match="not UTF-8"):
        chat.prompt_of(["-"])


@pytest.mark.parametrize("texts", [[""], [" \n"], ["", ""]])
def test_an_empty_prompt_is_refused(texts: list[str]) -> None:
    with pytest.raises(BadInput, match="empty"):
        chat.prompt_of(texts)


def test_an_argument_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(BadInput, match="--prompt is not valid UTF-8"):
        chat.prompt_of(["\udcff"])


def test_system_prompt_and_streaming_are_refused_where_the_arch_has_none() -> None:
    predict = references.load().arch("cosmos-predict2.5")
    with pytest.raises(BadInput, match="no system prompt"):
        chat.refuse_unsupported(predict, "s", False)
    with pytest.raises(BadInput, match="does not stream"):
        chat.refuse_unsupported(predict, None, True)


def test_a_completion_with_and_without_usage() -> None:
    assert parse(answer()) == chat.Completion("hello", "stop", None)
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert parse(answer(usage=usage)).usage == usage
    assert chat.cached_tokens(usage) == 1


def test_further_answers_are_kept() -> None:
    choices = [{"message": {"content": text}} for text in "abc"]
    assert parse(answer(choices=choices)) == chat.Completion("a", None, None, ("b", "c"))


def test_half_a_surrogate_pair_in_an_answer_can_still_be_printed() -> None:
    parse({"choices": [{"message": {"content": "a\ud800"}}]}).content.encode("utf-8")


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"error": {"type": "x", "message": "boom"}},
        answer(choices=[]),
        answer(choices={}),
        answer(choices=[None]),
        answer(choices=[{"message": {"content": None}}]),
        answer(choices=[{"message": {"content": ["a"]}}]),
        answer(choices=[{"message": {"content": "a"}, "finish_reason": 3}]),
        answer(usage=[]),
        answer(usage={"prompt_tokens": -1}),
        answer(usage={"prompt_tokens": True}),
        answer(usage={"prompt_tokens": "3"}),
        answer(usage={"prompt_tokens": float("nan")}),
    ],
)
def test_an_answer_that_breaks_the_contract_is_an_error_with_its_first_bytes(document: Any) -> None:
    with pytest.raises(ToolError) as caught:
        parse(document)
    assert caught.value.type == "invalid_answer"
    assert json.dumps(document)[:20] in caught.value.message


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    with pytest.raises(ToolError):
        chat.parse_completion(data)


def test_first_bytes_are_short_printable_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    shown = chat.first_bytes(b"\x1b[31m" + b"x" * 190 + b" hf_verysecret" + b"y" * 5000)
    assert len(shown) <= 210
    assert "\x1b" not in shown
    assert "hf_very" not in shown

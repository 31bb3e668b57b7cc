"""What the smollm2 microservice makes of a request's body, and of a model_path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.contracts import Progress
from inference_service.errors import ToolError
from inference_service.microservices.smollm2.chat import translate
from inference_service.microservices.smollm2.model import RequestError, locate


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def test_all_text_items_are_kept_joined_by_newlines() -> None:
    body = user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])
    assert translate(body)["messages"] == [{"role": "user", "content": "one\ntwo"}]


def test_system_and_earlier_messages_are_kept_in_their_order() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert translate({"messages": messages})["messages"] == messages


def test_sampling_values_are_handed_on_verbatim_and_have_the_tao_servers_defaults() -> None:
    assert translate(user("a")) == {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 1024,
        "temperature": 0.7,
    }
    values = {"max_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": 7, "stop": ["x", "y"]}
    assert {name: translate(user("a") | values)[name] for name in values} == values


def test_null_values_and_what_openai_clients_add_is_left_out() -> None:
    request = translate(user("a") | {"top_p": None, "model": "any", "user": "me", "stream": True})
    assert request.keys() == {"messages", "max_tokens", "temperature"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "JSON object"),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "role user"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role"),
        ({"messages": ["hello"]}, "role"),
        (user(None), "content"),
        (user([{"type": "text"}]), "text item"),
        (user(["hello"]), "text alone"),
        (user([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]), "image_url"),
        (user([{"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}]), "video_url"),
        (user("\ud800"), "Unicode"),
        (user("a") | {"max_tokens": 0}, "max_tokens"),
        (user("a") | {"max_tokens": "many"}, "max_tokens"),
        (user("a") | {"max_tokens": True}, "max_tokens"),
        (user("a") | {"temperature": 2.1}, "temperature"),
        (user("a") | {"temperature": float("nan")}, "temperature"),
        (user("a") | {"top_p": 0}, "top_p"),
        (user("a") | {"stop": 5}, "stop"),
        (user("a") | {"guidance": 3}, "guidance"),
        (user("a") | {"best_of": 3}, "best_of"),
    ],
)
def test_what_the_model_does_not_take_is_refused_by_name(body: Any, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        translate(body)


KEYS = st.sampled_from(["messages", "role", "content", "type", "text", "max_tokens", "stop"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


@given(JSON)
def test_no_json_value_makes_translation_fail_otherwise_than_by_refusing(body: Any) -> None:
    try:
        json.dumps(translate(body))
    except RequestError as refused:
        assert str(refused)


def ignore(_progress: Progress) -> None:
    pass


def test_an_absolute_path_is_a_gguf_file_or_a_folder_with_exactly_one(tmp_path: Path) -> None:
    file = tmp_path / "a model.gguf"
    file.write_bytes(b"GGUF....")
    assert locate(str(file), ignore) == ("a model", file)
    assert locate(str(tmp_path), ignore) == ("a model", file)
    (tmp_path / "b.gguf").write_bytes(b"GGUF....")
    with pytest.raises(ToolError, match=r"a model.gguf, b.gguf"):
        locate(str(tmp_path), ignore)


@pytest.mark.parametrize(
    "model_path", ["", "hf_model://org/other", "s3://bucket/model.gguf", "relative.gguf", "/nowhere/model.gguf"]
)
def test_any_other_model_path_is_refused_by_name(model_path: str) -> None:
    with pytest.raises(ToolError) as refused:
        locate(model_path, ignore)
    assert model_path in refused.value.message
    assert refused.value.fix


def test_a_file_that_is_no_gguf_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="none"):
        locate(str(tmp_path), ignore)
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ToolError, match="not a GGUF file"):
        locate(str(tmp_path), ignore)

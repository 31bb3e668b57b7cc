"""The streamed body is what json.dumps of the whole would give, whatever is in it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_service import body
from inference_service.body import InlinedFile, JsonBody, elided
from inference_service.errors import ToolError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    contents=st.lists(st.binary(max_size=300), max_size=4),
    piece=st.integers(1, 40),
)
def test_it_is_byte_for_byte_the_json_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], contents: list[bytes], piece: int
) -> None:
    monkeypatch.setattr(body, "_PIECE", 3 * piece)
    streamed: list[Any] = [{"type": "text", "text": text} for text in texts]
    whole: list[Any] = list(streamed)
    for number, content in enumerate(contents):
        file = tmp_path / str(number)
        file.write_bytes(content)
        streamed.insert(number, {"image_url": {"url": InlinedFile(file, "image/png", len(content))}})
        whole.insert(number, {"image_url": {"url": "data:image/png;base64," + base64.b64encode(content).decode()}})
    made = JsonBody({"messages": streamed, "n": 1.5})
    expected = json.dumps({"messages": whole, "n": 1.5}).encode()
    assert b"".join(made) == expected
    assert len(made) == len(expected)
    assert b"".join(made) == expected, "a second sending gives the same"


def test_no_piece_is_large_however_large_the_file(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(20 << 20)
    made = JsonBody({"a": InlinedFile(file, "video/mp4", 20 << 20)})
    sizes = [len(piece) for piece in made]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == len(made)


@pytest.mark.parametrize("size", [0, 5, 9, 11, 1000])
def test_a_file_whose_size_changed_since_it_was_looked_at_is_an_error(tmp_path: Path, size: int) -> None:
    file = tmp_path / "video"
    file.write_bytes(bytes(size))
    with pytest.raises(ToolError, match="changed while it was sent: it had 10 bytes") as caught:
        b"".join(JsonBody({"a": InlinedFile(file, "video/mp4", 10)}))
    assert caught.value.type == "file_changed"


def test_a_file_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="No such file") as caught:
        b"".join(JsonBody({"a": InlinedFile(tmp_path / "gone", "video/mp4", 10)}))
    assert caught.value.type == "file_unreadable"


def test_what_is_shown_has_sizes_in_place_of_media(tmp_path: Path) -> None:
    inline = "data:image/png;base64," + base64.b64encode(b"12345").decode()
    document = {"m": [InlinedFile(tmp_path / "x", "video/mp4", 99), inline, "data: is a word"]}
    assert elided(document) == {
        "m": ["data:video/mp4;base64,<99 bytes>", "data:image/png;base64,<5 bytes>", "data: is a word"]
    }

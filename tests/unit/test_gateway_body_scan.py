"""The fields that route a long body are found wherever the body is cut, and read as a JSON parser reads them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.gateway.body_scan import BodyScan

WANTED = ("model", "stream", "max_tokens", "stream_options")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(WANTED) | st.text(max_size=8)
documents = st.dictionaries(keys, json_values, max_size=6)


def scanned(text: bytes, cuts: list[int] | None = None) -> BodyScan:
    scan = BodyScan(WANTED)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or ())})
    for start, end in itertools.pairwise(edges):
        scan.feed(text[start:end])
    return scan


@given(documents, st.lists(st.integers(0, 10_000), max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_a_document_cut_anywhere_gives_the_fields_that_a_parser_gives(
    document: dict[str, Any], cuts: list[int], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    scan = scanned(text, cuts)
    assert scan.ended
    assert not scan.malformed
    assert scan.duplicate is None
    assert scan.values == {name: value for name, value in document.items() if name in WANTED}


def test_a_field_is_known_before_the_rest_has_come() -> None:
    scan = scanned(b'{"model": "claude-x", "messages": [{"content": "' + b"A" * 100_000)
    assert scan.values == {"model": "claude-x"}
    assert not scan.ended


def test_fields_of_inner_objects_are_not_taken_for_the_documents_own() -> None:
    scan = scanned(
        b'{"metadata": {"model": "inner", "stream": true}, "messages": [{"model": "deeper"}], "model": "own"}'
    )
    assert scan.values == {"model": "own"}


def test_text_that_looks_like_a_field_is_text() -> None:
    document = {"messages": [{"content": '", "model": "forged", "x": "'}], "model": "own"}
    assert scanned(json.dumps(document).encode()).values == {"model": "own"}


@pytest.mark.parametrize("second", ['"model"', '"mod\\u0065l"'])
def test_a_field_that_stands_twice_is_told_however_it_is_spelled(second: str) -> None:
    assert scanned(f'{{"model": "cheap", {second}: "dear"}}'.encode()).duplicate == "model"


@pytest.mark.parametrize("text", [b"[1, 2]", b'"text"', b'{"model": nonsense}'])
def test_what_is_no_object_is_malformed(text: bytes) -> None:
    assert scanned(text).malformed


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_no_bytes_break_it(noise: bytes, cuts: list[int]) -> None:
    scanned(b'{"model": "m"' + noise, cuts)


def test_a_value_of_many_kilobytes_is_read_as_missing() -> None:
    assert scanned(json.dumps({"model": "m" * 10_000, "stream": True}).encode()).values == {
        "model": None,
        "stream": True,
    }

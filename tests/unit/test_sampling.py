"""Sampling values are verbatim or refused, and each applicable one is set or accepted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import output, references, sampling
from inference_service.errors import BadInput, DecisionNeeded, Need
from inference_service.references import SamplingField

ARCHS = list(references.load().archs)


def field(kind: str, **limits: float) -> SamplingField:
    return dataclasses.replace(SamplingField("f", kind, "a field", None, True), **limits)  # type: ignore[arg-type]


@given(st.integers(min_value=1, max_value=10**30))
def test_an_integer_is_taken_as_it_is_written(value: int) -> None:
    assert sampling.parse(field("integer", minimum=1), str(value)) == value


@pytest.mark.parametrize(
    "text", ["", " 7", "7 ", "7.0", "1e3", "1_000", "true", "nan", "٧", "0", "-1", "--1", "1" * 5000]
)
def test_what_is_no_integer_of_the_range_is_refused_with_type_and_range(text: str) -> None:
    with pytest.raises(BadInput, match="an integer, at least 1"):
        sampling.parse(field("integer", minimum=1), text)


@given(st.floats(min_value=0, max_value=2))
def test_a_number_of_the_range_is_taken_exactly(value: float) -> None:
    assert sampling.parse(field("number", minimum=0, maximum=2), repr(value)) == value


def test_a_number_without_a_fraction_stays_an_integer() -> None:
    assert repr(sampling.parse(field("number"), "0")) == "0"
    assert repr(sampling.parse(field("number"), "0.50")) == "0.5"


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "Infinity", "1e999", "2.0001", "-0.1", "", "true", "0x1", " 1.5", "1_0.0"]
)
def test_a_number_is_never_clamped(text: str) -> None:
    with pytest.raises(BadInput, match="a number, 0 to 2"):
        sampling.parse(field("number", minimum=0, maximum=2), text)


def test_an_exclusive_minimum_is_excluded() -> None:
    top_p = field("number", exclusive_minimum=0, maximum=1)
    assert sampling.parse(top_p, "1") == 1
    with pytest.raises(BadInput, match="above 0, at most 1"):
        sampling.parse(top_p, "0")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_that_json_cannot_carry_passes(value: float) -> None:
    try:
        assert math.isfinite(sampling.parse(field("number"), str(value)))
    except BadInput:
        assert not math.isfinite(value)


@given(st.text())
def test_a_text_is_verbatim(text: str) -> None:
    assert sampling.parse(field("string"), text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("END", "END"), ("[END]", "[END]"), ('["a", "b"]', ["a", "b"]), ("7", "7"), ('{"a": 1}', '{"a": 1}'), ("", "")],
)
def test_stop_takes_one_text_or_a_json_list_of_texts(text: str, value: object) -> None:
    assert sampling.parse(field("string_list"), text) == value


def test_a_list_of_other_things_than_texts_is_refused() -> None:
    with pytest.raises(BadInput, match="JSON list of texts"):
        sampling.parse(field("string_list"), "[1]")


@pytest.mark.parametrize("text", ["True", "1", "yes", ""])
def test_a_boolean_is_true_or_false(text: str) -> None:
    assert sampling.parse(field("boolean"), "false") is False
    with pytest.raises(BadInput, match="true or false"):
        sampling.parse(field("boolean"), text)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_field_that_is_asked_for_is_a_need_with_type_default_range_and_how_to_answer(arch: str) -> None:
    with pytest.raises(DecisionNeeded) as caught:
        sampling.resolve(references.load().arch(arch), [], [], False)
    needs = {need.name: need for need in caught.value.needs}
    assert set(needs) == {one.name for one in sampling.fields_to_ask(references.load().arch(arch))}
    assert needs["max_tokens"].answer_with == "--set max_tokens=VALUE or --accept-default max_tokens"
    assert (needs["max_tokens"].type, needs["max_tokens"].range) == ("integer", "at least 1")


@pytest.mark.parametrize("arch", ARCHS)
def test_all_defaults_accepted_send_the_arch_s_own_defaults_and_leave_out_null_ones(arch: str) -> None:
    rules = references.load().arch(arch)
    values = sampling.resolve(rules, [], [], True)
    asked = sampling.fields_to_ask(rules)
    assert values == {one.name: one.default for one in asked if one.default is not None}


def test_one_field_left_over_is_the_only_one_asked() -> None:
    with pytest.raises(DecisionNeeded) as caught:
        sampling.resolve(references.load().arch("cosmos-rl"), ["max_tokens=9"], ["top_p"], False)
    assert [need.name for need in caught.value.needs] == ["temperature"]


def test_set_values_and_accepted_defaults_come_together() -> None:
    values = sampling.resolve(references.load().arch("cosmos-rl"), ["max_tokens=9", "top_k=4"], ["top_p"], True)
    assert values == {"max_tokens": 9, "top_p": 0.8, "temperature": 0.7, "top_k": 4}


def test_a_field_both_set_and_accepted_is_refused() -> None:
    with pytest.raises(BadInput, match="both set"):
        sampling.resolve(references.load().arch("cosmos-rl"), ["top_p=0.5"], ["top_p"], True)


@pytest.mark.parametrize(
    ("assignments", "kind"), [(["top_p"], "not_an_assignment"), (["top_p=1", "top_p=1"], "field_set_twice")]
)
def test_a_field_is_set_once_and_with_a_value(assignments: list[str], kind: str) -> None:
    with pytest.raises(BadInput) as caught:
        sampling.resolve(references.load().arch("cosmos-rl"), assignments, [], True)
    assert caught.value.type == kind


@pytest.mark.parametrize("arch", ARCHS)
def test_a_field_of_another_arch_is_refused_and_its_arch_named(arch: str) -> None:
    rules = references.load().arch(arch)
    for name in references.load().wire.all_fields - set(rules.request.fields):
        for assignments, accepted in (([f"{name}=1"], []), ([], [name])):
            with pytest.raises(BadInput) as caught:
                sampling.resolve(rules, assignments, accepted, True)
            takers = [other.network_arch for other in references.load().archs.values() if name in other.request.fields]
            assert caught.value.type == "field_of_another_arch"
            assert all(taker in caught.value.message for taker in takers)


def test_a_field_of_no_arch_is_refused_with_the_list_of_those_there_are() -> None:
    with pytest.raises(BadInput) as caught:
        sampling.resolve(references.load().arch("smollm2"), ["temprature=1"], [], True)
    assert caught.value.type == "unknown_field"
    assert "temperature" in caught.value.fix


def test_at_a_terminal_a_bad_answer_is_asked_again_and_the_good_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [{"max_tokens": "12", "temperature": "3"}, {"temperature": "1.5"}]
    asked: list[list[str]] = []

    def decide(needs: Sequence[Need]) -> dict[str, str]:
        asked.append([need.name for need in needs])
        return rounds[len(asked) - 1]

    monkeypatch.setattr(output, "decide", decide)
    values = sampling.resolve(references.load().arch("cosmos-rl"), [], [], False)
    assert asked == [["max_tokens", "top_p", "temperature"], ["temperature"]]
    assert values == {"max_tokens": 12, "top_p": 0.8, "temperature": 1.5}

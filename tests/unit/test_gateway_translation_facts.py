"""gateway.yaml keeps its schema, and nothing that the two SDKs know is missing from it."""

from __future__ import annotations

import typing

import pytest
from anthropic.types import OutputConfigParam, StopReason, message_create_params
from openai.types.chat import chat_completion, completion_create_params
from openai.types.shared import ReasoningEffort

from inference_service import paths, reference_validation
from inference_service.gateway.translation import anthropic_request, facts, openai_request


def literals(annotation: object) -> set[object]:
    """All values of the Literals in a type."""
    if typing.get_origin(annotation) is typing.Literal:
        return set(typing.get_args(annotation))
    return {value for part in typing.get_args(annotation) for value in literals(part)}


def test_the_file_keeps_its_schema() -> None:
    file = paths.REFERENCES / "gateway.yaml"
    assert reference_validation.validated(file, reference_validation.read_yaml(file))


def test_every_field_of_openais_requests_is_translated_ignored_or_refused() -> None:
    rules = facts.load().from_openai
    fields = set(typing.get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming))
    assert fields <= openai_request._TRANSLATED | set(rules.ignored) | set(rules.refused)
    assert openai_request._TRANSLATED - fields == {"thinking", "top_k"}
    assert set(rules.neutral) <= set(rules.refused)


def test_every_field_of_anthropics_requests_is_translated_ignored_or_refused() -> None:
    rules = facts.load().from_anthropic
    fields = set(typing.get_type_hints(message_create_params.MessageCreateParamsNonStreaming))
    fields |= {"temperature", "top_p", "top_k"}  # Still taken for models that have them; the SDK's types no longer do.
    assert fields <= anthropic_request._TRANSLATED | set(rules.ignored) | set(rules.refused)
    assert fields >= anthropic_request._TRANSLATED
    assert set(rules.neutral) <= set(rules.refused)


def test_no_field_is_said_to_be_two_things() -> None:
    for rules, translated in (
        (facts.load().from_openai, openai_request._TRANSLATED),
        (facts.load().from_anthropic, anthropic_request._TRANSLATED),
    ):
        assert len(translated) + len(rules.ignored) + len(rules.refused) == len(
            translated | set(rules.ignored) | set(rules.refused)
        )


def test_every_reason_to_stop_has_its_other_word() -> None:
    known = facts.load()
    finish_reasons = chat_completion.Choice.model_fields["finish_reason"].annotation
    assert set(known.finish_reason_of) == literals(StopReason)
    assert set(known.stop_reason_of) == literals(finish_reasons)
    assert set(known.finish_reason_of.values()) <= set(known.stop_reason_of)
    assert set(known.stop_reason_of.values()) <= set(known.finish_reason_of)


def test_every_effort_has_its_other_word() -> None:
    known = facts.load()
    efforts = typing.get_type_hints(OutputConfigParam)["effort"]
    assert set(known.efforts) == literals(ReasoningEffort)
    assert set(known.efforts.values()) - {None} == literals(efforts)


@pytest.mark.parametrize(
    ("model", "refuses"),
    [
        ("claude-opus-5-5", {facts.SAMPLING, facts.FORCED_TOOL_CHOICE, facts.THINKING_DISABLED}),
        ("claude-fable-5-1", {facts.SAMPLING, facts.FORCED_TOOL_CHOICE, facts.THINKING_DISABLED}),
        ("claude-fable-5", {facts.SAMPLING, facts.THINKING_DISABLED}),
        ("claude-opus-5", {facts.SAMPLING}),
        ("claude-opus-4-7", {facts.SAMPLING}),
        ("claude-sonnet-5-5", {facts.SAMPLING}),
        ("claude-haiku-5-5[1m]", {facts.SAMPLING}),
        ("claude-opus-4-6", set()),
        ("claude-sonnet-4-5-20250929", set()),
        ("claude-haiku-4-5-20251001", set()),
        ("a-model-nobody-knows", set()),
    ],
)
def test_what_a_model_refuses_is_known_by_its_name(model: str, refuses: set[str]) -> None:
    assert facts.refused_by(model) == refuses

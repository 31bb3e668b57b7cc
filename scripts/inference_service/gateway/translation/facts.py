"""What references/gateway.yaml says of the two wire formats and of single models, taken apart once per process."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service.gateway import facts as gateway_facts

SAMPLING = "sampling"
FORCED_TOOL_CHOICE = "forced_tool_choice"
THINKING_DISABLED = "thinking_disabled"


@dataclass(frozen=True)
class FieldRules:
    """What becomes of a request's fields that are not translated; the values are the reasons.

    A refused field is as good as absent where its value is one of its `neutral` ones.
    """

    ignored: Mapping[str, str]
    refused: Mapping[str, str]
    neutral: Mapping[str, list[Any]]


@dataclass(frozen=True)
class ErrorNames:
    """The names of errors by HTTP status in both shapes, and the statuses that the types of events stand for."""

    anthropic_types: Mapping[int, str]
    openai_types: Mapping[int, str]
    statuses_of_types: Mapping[str, int]
    openai_statuses: Mapping[int, int]


@dataclass(frozen=True)
class Facts:
    """All of gateway.yaml's `translation`. `efforts` maps OpenAI's to Anthropic's, None where thinking is off."""

    default_max_tokens: int
    from_openai: FieldRules
    from_anthropic: FieldRules
    image_types: frozenset[str]
    efforts: Mapping[str, str | None]
    dropped_blocks: frozenset[str]
    model_rules: tuple[tuple[tuple[str, ...], frozenset[str]], ...]
    finish_reason_of: Mapping[str, str]
    stop_reason_of: Mapping[str, str]
    errors: ErrorNames


@functools.cache
def load() -> Facts:
    """The facts, read from the file once.

    Raises:
        ToolError: the file is missing, does not parse or breaks its schema.
    """
    data = gateway_facts.document()["translation"]
    openai, anthropic, errors = data["openai_to_anthropic"], data["anthropic_to_openai"], data["errors"]
    return Facts(
        default_max_tokens=data["default_max_tokens"],
        from_openai=_rules(openai),
        from_anthropic=_rules(anthropic),
        image_types=frozenset(openai["image_types"]),
        efforts=openai["efforts"],
        dropped_blocks=frozenset(anthropic["dropped_blocks"]),
        model_rules=tuple((tuple(rule["models"]), frozenset(rule["refuses"])) for rule in data["model_rules"]),
        finish_reason_of=data["finish_reasons"]["anthropic_to_openai"],
        stop_reason_of=data["finish_reasons"]["openai_to_anthropic"],
        errors=ErrorNames(
            anthropic_types=_by_status(errors["anthropic_types"]),
            openai_types=_by_status(errors["openai_types"]),
            statuses_of_types=errors["statuses_of_types"],
            openai_statuses=_by_status(errors["openai_statuses"]),
        ),
    )


@functools.lru_cache(maxsize=256)
def refused_by(model: str) -> frozenset[str]:
    """What the model refuses: SAMPLING, FORCED_TOOL_CHOICE, THINKING_DISABLED. Nothing is known of unknown models."""
    return frozenset(
        what
        for models, refuses in load().model_rules
        if any(fnmatch.fnmatchcase(model, pattern) for pattern in models)
        for what in refuses
    )


def _rules(data: Mapping[str, Any]) -> FieldRules:
    return FieldRules(data["ignored"], data["refused"], data["neutral"])


def _by_status(data: Mapping[str, Any]) -> dict[int, Any]:
    return {int(status): value for status, value in data.items()}

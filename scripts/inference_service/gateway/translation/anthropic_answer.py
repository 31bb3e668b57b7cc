"""An answer of `POST /v1/chat/completions` as one of `POST /v1/messages`.

Reasoning that a service tells beside its answer is left out: as a thinking block it would need a signature. Anthropic's
format has no answer without usage: where a service tells none, it says 0 (the log and the price do not).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from inference_service import metering
from inference_service.gateway.translation import facts
from inference_service.gateway.translation.fields import Json

UNREADABLE_ARGUMENTS = "unreadable_arguments"
"""The key under which a tool's arguments are passed on that the model wrote as something else than a JSON object."""


def from_openai(completion: Mapping[str, Any], *, answer_id: str, model: str) -> Json:
    """The same answer in Anthropic's format; `answer_id` and `model` stand in for what the service does not tell.

    Raises:
        KeyError, IndexError, TypeError, AttributeError: `completion` is none of OpenAI's.
    """
    choice = completion["choices"][0]
    message = choice["message"]
    blocks = [{"type": "text", "text": part} for part in (text(message.get("content")), message.get("refusal")) if part]
    calls = message.get("tool_calls") or []
    blocks += [_tool_use(call, position) for position, call in enumerate(calls)]
    reason, sequence = stop_reason(choice, bool(calls))
    return {
        "id": completion.get("id") or answer_id,
        "type": "message",
        "role": "assistant",
        "model": completion.get("model") or model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage(completion.get("usage")),
    }


def text(content: object) -> str:
    """A message's content as text: some services answer with a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return "" if content is None else orjson.dumps(content).decode()


def stop_reason(choice: Mapping[str, Any], called_tools: bool) -> tuple[str, str | None]:
    """Anthropic's word for why the answer ended, and the stop sequence that ended it, where the service tells it.

    Some services say `stop` although tools are called.
    """
    # vLLM tells the stop sequence beside the finish_reason; a number there is a token's.
    sequence = choice.get("stop_reason")
    finish = choice.get("finish_reason")
    if finish == "stop" and isinstance(sequence, str) and not called_tools:
        return "stop_sequence", sequence
    if finish == "stop" and called_tools:
        return "tool_use", None
    return facts.load().stop_reason_of.get(finish or "", "end_turn"), None


def usage(reported: object) -> Json:
    """OpenAI's `usage` as Anthropic's, which counts what was cached beside the other input."""
    counted = metering.from_openai(reported) if isinstance(reported, dict) else None
    if counted is None:
        return {"input_tokens": 0, "output_tokens": 0}
    written = counted.cache_write_5m_tokens
    return {
        "input_tokens": counted.uncached_tokens,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": counted.cached_tokens,
        "output_tokens": counted.output_tokens,
    }


def call_id(call: Mapping[str, Any], position: int) -> str:
    """The id of a tool call; some services give them none."""
    return call.get("id") or f"call_{position}"


def _tool_use(call: Mapping[str, Any], position: int) -> Json:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": call_id(call, position),
        "name": function["name"],
        "input": _input(function["arguments"]),
    }


def _input(arguments: str) -> Json:
    try:
        parsed = orjson.loads(arguments) if arguments.strip() else {}
    except orjson.JSONDecodeError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {UNREADABLE_ARGUMENTS: arguments}

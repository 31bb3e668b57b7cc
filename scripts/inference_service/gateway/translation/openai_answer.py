"""An answer of `POST /v1/messages` as one of `POST /v1/chat/completions`.

Thinking, its signatures and what Anthropic's own tools did are not the answer's text and are left out. A refusal by
Anthropic's classifiers is finish_reason content_filter, with their explanation as `refusal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from inference_service import metering
from inference_service.gateway.translation import facts
from inference_service.gateway.translation.fields import Json


def from_anthropic(message: Mapping[str, Any], *, created: int) -> Json:
    """The same answer in OpenAI's format; `created` is its time in seconds since 1970.

    Raises:
        KeyError, TypeError, AttributeError: `message` is none of Anthropic's.
    """
    blocks = message["content"]
    answer: Json = {
        "role": "assistant",
        "content": "".join(block["text"] for block in blocks if block["type"] == "text") or None,
        "refusal": refusal(message),
    }
    calls = [tool_call(block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    if calls:
        answer["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": answer,
        "logprobs": None,
        "finish_reason": finish_reason(message.get("stop_reason")),
    }
    return {
        "id": message["id"],
        "object": "chat.completion",
        "created": created,
        "model": message["model"],
        "choices": [choice],
        "usage": usage(message.get("usage") or {}),
    }


def tool_call(call_id: str, name: str, arguments: object) -> Json:
    """A call of a tool; `arguments` are written as JSON text."""
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": orjson.dumps(arguments).decode()},
    }


def finish_reason(stop_reason: str | None) -> str:
    """OpenAI's word for why the answer ended; `stop` for reasons that are not known yet."""
    return facts.load().finish_reason_of.get(stop_reason or "", "stop")


def refusal(holder: Mapping[str, Any]) -> str | None:
    """What a message, or the `delta` of a message_delta, says of why it was refused."""
    details = holder.get("stop_details")
    explanation = details.get("explanation") if isinstance(details, dict) else None
    return explanation if isinstance(explanation, str) and explanation else None


def usage(reported: Mapping[str, Any]) -> Json | None:
    """Anthropic's `usage` as OpenAI's, which counts what was cached into the prompt; None if it is not known."""
    counted = metering.from_anthropic(reported)
    if counted is None:
        return None
    translated: Json = {
        "prompt_tokens": counted.input_tokens,
        "completion_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": counted.cached_tokens,
            "cache_write_tokens": counted.cache_write_5m_tokens + counted.cache_write_1h_tokens,
        },
    }
    details = reported.get("output_tokens_details")
    if isinstance(details, dict) and isinstance(details.get("thinking_tokens"), int):
        translated["completion_tokens_details"] = {"reasoning_tokens": details["thinking_tokens"]}
    return translated

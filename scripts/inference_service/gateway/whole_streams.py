"""Streams from services that do not stream: the whole answer as the few events that a streaming service would send.

An SDK that was told to stream reads them like any other; only the waiting is at the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


def events(completion: Mapping[str, Any]) -> bytes:
    """A chat completion as server-sent events of `chat.completion.chunk`s: per choice what was said and why it ended,
    then the usage where the service told one, then the end.

    Raises:
        KeyError, TypeError, AttributeError: it is no chat completion.
    """
    common = {name: completion.get(name) for name in ("id", "created", "model", "system_fingerprint")}
    common["object"] = "chat.completion.chunk"
    chunks = []
    for choice in completion["choices"]:
        message, index = choice["message"], choice.get("index", 0)
        delta = {name: value for name, value in message.items() if value is not None}
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(delta["tool_calls"])]
        ended = choice.get("finish_reason") or "stop"
        chunks.append({**common, "choices": [{"index": index, "delta": delta, "finish_reason": None}]})
        chunks.append({**common, "choices": [{"index": index, "delta": {}, "finish_reason": ended}]})
    if completion.get("usage"):
        chunks.append({**common, "choices": [], "usage": completion["usage"]})
    return b"".join(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in chunks) + b"data: [DONE]\n\n"

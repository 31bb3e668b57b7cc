"""Answers in both wire formats, streamed and not, from one description, as hypothesis finds it.

The streams look like those of the real servers: Anthropic's with named events, pings and padding (as recorded from
api.anthropic.com), OpenAI's as llama.cpp's and vLLM's servers write them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ['"usage":{', "data: [DONE]\n\n", "message_stop", '\\"}', '"}}\n\n', "event: error", "finish_reason", "\r\n", "é😀"]
)


@dataclass(frozen=True)
class Tool:
    """A tool call, its arguments as the model wrote them piece by piece."""

    id: str
    name: str
    arguments: tuple[str, ...]

    @property
    def input(self) -> Any:
        return json.loads("".join(self.arguments) or "{}")


@dataclass(frozen=True)
class Answer:
    """What a model answered: text in pieces, thinking before it, tool calls after it, and why it stopped."""

    texts: tuple[str, ...] = ()
    thoughts: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    stop_reason: str = "end_turn"
    finish_reason: str = "stop"
    usage: dict[str, Any] = field(
        default_factory=lambda: {
            "input_tokens": 7,
            "cache_creation_input_tokens": 20,
            "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
            "cache_read_input_tokens": 100,
            "output_tokens": 42,
        }
    )

    @property
    def text(self) -> str:
        return "".join(self.texts)


@st.composite
def _tools(draw: st.DrawFn) -> tuple[Tool, ...]:
    tools = []
    for number in range(draw(st.integers(0, 3))):
        arguments = json.dumps(
            draw(st.dictionaries(TEXT, TEXT | st.integers(-(2**63), 2**64 - 1) | st.none(), max_size=2))
        )
        middle = draw(st.integers(1, max(1, len(arguments) - 1)))
        pieces = draw(st.sampled_from([(), (arguments,), (arguments[:middle], arguments[middle:])]))
        tools.append(Tool(f"toolu_{number}", draw(st.sampled_from(["weather", "time"])), tuple(p for p in pieces if p)))
    return tuple(tools)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """Any answer that both formats can tell."""
    tools = draw(_tools())
    reasons = [("tool_use", "tool_calls")] if tools else [("end_turn", "stop"), ("max_tokens", "length")]
    stop_reason, finish_reason = draw(st.sampled_from(reasons))
    return Answer(
        tuple(draw(st.lists(TEXT, max_size=5))),
        tuple(draw(st.lists(TEXT, max_size=2))),
        tools,
        stop_reason,
        finish_reason,
    )


def cut(data: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """The bytes in pieces, cut at the places."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return (data[start:end] for start, end in itertools.pairwise(edges))


def anthropic_message(answer: Answer) -> dict[str, Any]:
    """The answer as POST /v1/messages gives it when it is not streamed."""
    content: list[dict[str, Any]] = []
    if answer.thoughts:
        content.append({"type": "thinking", "thinking": "".join(answer.thoughts), "signature": "c2lnbmVk"})
        content.append({"type": "redacted_thinking", "data": "c2VjcmV0"})
    if answer.texts:
        content.append({"type": "text", "text": answer.text, "citations": None})
    content += [{"type": "tool_use", "id": t.id, "name": t.name, "input": t.input} for t in answer.tools]
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5-5",
        "content": content,
        "stop_reason": answer.stop_reason,
        "stop_sequence": None,
        "usage": answer.usage,
    }


def anthropic_stream(answer: Answer, *, padding: bool = False, end: str = "\n") -> bytes:
    """The same, streamed."""
    message = anthropic_message(answer)
    start = {**message, "content": [], "stop_reason": None, "usage": {**answer.usage, "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        events += _block(index, block, answer)
    delta = {"stop_reason": answer.stop_reason, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": answer.usage["output_tokens"]}})
    events.append({"type": "message_stop"})
    lines = []
    for number, event in enumerate(events):
        data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        if padding and event["type"] == "content_block_delta":
            data = data[:-1] + " " * (number * 7 % 11) + "}"
        lines.append(f"event: {event['type']}{end}data: {data}{end}{end}")
    return "".join(lines).encode()


def _block(index: int, block: dict[str, Any], answer: Answer) -> list[dict[str, Any]]:
    kind = block["type"]
    empty: dict[str, Any] = {
        "thinking": {"type": "thinking", "thinking": "", "signature": ""},
        "redacted_thinking": block,
        "text": {"type": "text", "text": ""},
        "tool_use": {**block, "input": {}},
    }[kind]
    deltas: list[dict[str, Any]] = []
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": part} for part in answer.thoughts]
        deltas.append({"type": "signature_delta", "signature": "c2lnbmVk"})
    elif kind == "text":
        deltas = [{"type": "text_delta", "text": part} for part in answer.texts]
    elif kind == "tool_use":
        tool = next(tool for tool in answer.tools if tool.id == block["id"])
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", *tool.arguments)]
    return [
        {"type": "content_block_start", "index": index, "content_block": empty},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def openai_completion(answer: Answer) -> dict[str, Any]:
    """The answer as POST /v1/chat/completions gives it when it is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.thoughts:
        message["reasoning_content"] = "".join(answer.thoughts)
    if answer.tools:
        message["tool_calls"] = [
            {"id": t.id, "type": "function", "function": {"name": t.name, "arguments": "".join(t.arguments)}}
            for t in answer.tools
        ]
    return {
        "id": "chatcmpl-123",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "smollm2",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": openai_usage(answer),
    }


def openai_usage(answer: Answer) -> dict[str, Any]:
    """The answer's usage in OpenAI's form."""
    usage = answer.usage
    cached, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    prompt = usage["input_tokens"] + cached + written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage["output_tokens"],
        "total_tokens": prompt + usage["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    }


def openai_stream(answer: Answer, *, spaces: bool = False, end: str = "\n", usage: bool = True) -> bytes:
    """The same, streamed; `spaces` after the separators, as Python's json writes them."""
    head = {"id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "smollm2"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": part} for part in answer.thoughts]
    deltas += [{"content": part} for part in answer.texts]
    for index, tool in enumerate(answer.tools):
        start = {"index": index, "id": tool.id, "type": "function", "function": {"name": tool.name, "arguments": ""}}
        deltas.append({"tool_calls": [start]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in tool.arguments]
    chunks: list[dict[str, Any]] = [_chunk(head, delta, None) for delta in deltas]
    chunks.append(_chunk(head, {}, answer.finish_reason))
    if usage:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
        chunks.append({**head, "choices": [], "usage": openai_usage(answer)})
    separators = (", ", ": ") if spaces else (",", ":")
    lines = [f"data: {json.dumps(chunk, separators=separators)}{end}{end}" for chunk in chunks]
    return ("".join(lines) + f"data: [DONE]{end}{end}").encode()


def _chunk(head: dict[str, Any], delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}

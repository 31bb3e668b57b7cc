"""A stream of `POST /v1/chat/completions` as one of `POST /v1/messages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from inference_service import metering
from inference_service.gateway.tapping import Shape
from inference_service.gateway.translation import anthropic_answer, errors
from inference_service.gateway.translation.fields import Json
from inference_service.gateway.translation.streams import TranslatedStream
from inference_service.metering import Usage


@dataclass
class _Tool:
    """A tool call. Its block is opened when the one before it is whole; until then its arguments are held."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)
    opened: bool = False


class OpenAIToAnthropic(TranslatedStream):
    """Reads OpenAI's chunks and gives Anthropic's events.

    `answer_id` and `model` stand in for what the service does not tell. Reasoning beside the answer is counted, and not
    sent on. The input's tokens, which OpenAI's format tells last, come with the last event (message_delta), where
    Anthropic's SDKs take them from.
    """

    shape: Shape = "anthropic"
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, *, answer_id: str, model: str) -> None:
        super().__init__()
        self._answer_id = answer_id
        self._model = model
        self._usage: Mapping[str, Any] | None = None
        self._begun_answer = False
        self._block = -1
        self._block_kind: str | None = None
        self._tools: dict[int, _Tool] = {}
        self._open_tool: int | None = None
        self._last_choice: Json = {}

    @property
    def usage(self) -> Usage | None:
        """What the stream reported so far."""
        return metering.from_openai(self._usage) if self._usage else None

    def _document(self, document: Mapping[str, Any]) -> str | None:
        if document.get("error") or document.get("object") == "error":
            kind, message, _ = errors.read_document(document)
            self._fail(kind, message, _status(document))
            return None
        usage = document.get("usage")
        # Some services send the usage without any choices.
        choices = document.get("choices") or () if usage else document["choices"]
        if not self._begun_answer:
            self._begin(document)
        if usage:
            self._usage = metering.merge(self._usage, usage)
        text_alone = None
        for choice in choices:
            if choice.get("index", 0) == 0:
                text_alone = self._choice(choice)
        return text_alone

    def _begin(self, chunk: Mapping[str, Any]) -> None:
        self._begun_answer = True
        message: Json = {
            "id": chunk.get("id") or self._answer_id,
            "type": "message",
            "role": "assistant",
            "model": chunk.get("model") or self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._event({"type": "message_start", "message": message})

    def _choice(self, choice: Mapping[str, Any]) -> str | None:
        delta = choice.get("delta") or {}
        for name in ("reasoning_content", "reasoning"):
            if isinstance(delta.get(name), str) and delta[name]:
                self._count(delta[name])
        for kind in ("content", "refusal"):
            text = anthropic_answer.text(delta.get(kind))
            if text:
                self._content(kind, text)
        for call in delta.get("tool_calls") or ():
            self._tool_call(call)
        if choice.get("finish_reason"):
            self.finish_reason = choice["finish_reason"]
            self._last_choice = {"finish_reason": self.finish_reason, "stop_reason": choice.get("stop_reason")}
        elif len(delta) == 1 and isinstance(delta.get("content"), str):
            content: str = delta["content"]
            return content
        return None

    def _end_of_text(self, line: bytes) -> int:
        if self._block_kind == "content" and line.endswith(self._after_text):
            return len(line) - len(self._after_text)
        return -1

    def _send_text(self, text: bytes) -> None:
        self._out.append(
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"text_delta","text":"%b"}}\n\n' % (self._block, text)
        )

    def _content(self, kind: str, text: str) -> None:
        self._count(text)
        if self._block_kind != kind:
            self._close_block()
            self._open_block(kind, {"type": "text", "text": ""})
        self._send_text(orjson.dumps(text)[1:-1])

    def _tool_call(self, call: Mapping[str, Any]) -> None:
        index, function = call["index"], call.get("function") or {}
        tool = self._tools.get(index)
        if tool is None:
            tool = _Tool(anthropic_answer.call_id(call, len(self._tools)), function["name"])
            self._tools[index] = tool
            if self._open_tool is None or self._is_whole(self._tools[self._open_tool]):
                self._open(index, tool)
        part = function.get("arguments")
        if not part:
            return
        self._count(part)
        tool.arguments.append(part)
        if self._open_tool == index:
            self._send_arguments(part)
        elif tool.opened:
            raise KeyError("arguments for a tool call that was whole")

    def _is_whole(self, tool: _Tool) -> bool:
        try:
            orjson.loads("".join(tool.arguments) or "{}")
        except orjson.JSONDecodeError:
            return False
        return True

    def _open(self, index: int, tool: _Tool) -> None:
        self._close_block()
        tool.opened = True
        self._open_tool = index
        self._open_block("tool_use", {"type": "tool_use", "id": tool.id, "name": tool.name, "input": {}})

    def _send_arguments(self, part: str) -> None:
        delta = {"type": "input_json_delta", "partial_json": part}
        self._event({"type": "content_block_delta", "index": self._block, "delta": delta})

    def _open_block(self, kind: str, block: Json) -> None:
        self._block += 1
        self._block_kind = kind
        self._event({"type": "content_block_start", "index": self._block, "content_block": block})

    def _close_block(self) -> None:
        if self._block_kind is not None:
            self._event({"type": "content_block_stop", "index": self._block})
        self._block_kind = self._open_tool = None

    def _event(self, document: Json) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (document["type"].encode(), orjson.dumps(document)))

    def _done(self) -> None:
        if not self._begun_answer:
            self._fail("bad_answer", "the upstream's stream has no answer in it")
            return
        for index, tool in self._tools.items():
            if not tool.opened:
                self._open(index, tool)
                if tool.arguments:
                    self._send_arguments("".join(tool.arguments))
        self._close_block()
        reason, sequence = anthropic_answer.stop_reason(self._last_choice, bool(self._tools))
        self._event(
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": anthropic_answer.usage(self._usage),
            }
        )
        self._event({"type": "message_stop"})
        self._finish()


def _status(document: Mapping[str, Any]) -> int | None:
    error = document.get("error")
    code = (error if isinstance(error, dict) else document).get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else None

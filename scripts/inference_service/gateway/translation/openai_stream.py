"""A stream of `POST /v1/messages` as one of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from inference_service import metering
from inference_service.gateway.tapping import Shape
from inference_service.gateway.translation import errors, openai_answer
from inference_service.gateway.translation.streams import TranslatedStream
from inference_service.metering import Usage


class AnthropicToOpenAI(TranslatedStream):
    """Reads Anthropic's events and gives OpenAI's chunks.

    `created` is the answer's time in seconds since 1970; `include_usage`: the client asked for the chunk with the
    usage. Thinking and what Anthropic's own tools do are counted, and not sent on.
    """

    shape: Shape = "openai"
    keep_alive = b": ping\n\n"

    def __init__(self, *, created: int, include_usage: bool = False) -> None:
        super().__init__()
        self._created = created
        self._include_usage = include_usage
        self._usage: Mapping[str, Any] = {}
        self._before_delta = b""
        self._after_delta = b',"logprobs":null,"finish_reason":null}]' + self._end_of_chunk()
        self._refusal: str | None = None
        self._tools: dict[int, int] = {}
        """The position among the tool calls of each block that is one."""
        self._inputs: dict[int, object] = {}
        """The input of each tool call of which no part has come yet, as its block's start told it."""

    @property
    def usage(self) -> Usage | None:
        """What the stream reported so far: the input from its start on, the output at its end."""
        return metering.from_anthropic(self._usage)

    def _end_of_chunk(self) -> bytes:
        # OpenAI's chunks before the one with the usage say that they have none.
        return b',"usage":null}\n\n' if self._include_usage else b"}\n\n"

    def _document(self, document: Mapping[str, Any]) -> str | None:
        kind = document["type"]
        if kind == "content_block_delta":
            return self._delta(document["index"], document["delta"])
        if kind == "content_block_start":
            self._start(document["index"], document["content_block"])
        elif kind == "content_block_stop":
            index = document["index"]
            if index in self._inputs:
                self._arguments(index, orjson.dumps(self._inputs.pop(index)).decode())
        elif kind == "message_start":
            self._begin(document["message"])
        elif kind == "message_delta":
            self._usage = metering.merge(self._usage, document.get("usage") or {})
            delta = document["delta"]
            self.finish_reason = delta.get("stop_reason") or self.finish_reason
            self._refusal = openai_answer.refusal(delta) or self._refusal
        elif kind == "message_stop":
            self._last_chunks()
        elif kind == "ping":
            self._out.append(self.keep_alive)
        elif kind == "error":
            error, message, _ = errors.read_document(document)
            self._fail(error, message)
        return None

    def _begin(self, message: Mapping[str, Any]) -> None:
        self._usage = metering.merge(self._usage, message.get("usage") or {})
        head = orjson.dumps(
            {
                "id": message["id"],
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": message["model"],
            }
        )
        self._before_delta = b"data: " + head[:-1] + b',"choices":[{"index":0,"delta":'
        self._send(b'{"role":"assistant","content":null,"refusal":null}')

    def _start(self, index: int, block: Mapping[str, Any]) -> None:
        kind = block["type"]
        if kind == "text" and block["text"]:
            self._content(block["text"])
        elif kind == "tool_use":
            self._tools[index] = len(self._tools)
            self._inputs[index] = block.get("input") or {}
            call = openai_answer.tool_call(block["id"], block["name"], {})
            call["function"]["arguments"] = ""
            self._send(orjson.dumps({"tool_calls": [{"index": self._tools[index], **call}]}))

    def _delta(self, index: int, delta: Mapping[str, Any]) -> str | None:
        kind = delta["type"]
        if kind == "text_delta":
            text: str = delta["text"]
            if text:
                self._content(text)
            return text
        if kind == "input_json_delta":
            part = delta["partial_json"]
            if part:
                self._count(part)
                if index in self._tools:
                    self._inputs.pop(index, None)
                    self._arguments(index, part)
        elif kind == "thinking_delta" and delta["thinking"]:
            self._count(delta["thinking"])
        return None

    def _end_of_text(self, line: bytes) -> int:
        # Anthropic pads its events with spaces, so that their sizes do not give the text away.
        end = line.rfind(b'"')
        return end if line[end:].translate(None, b" \r") == b'"}}' else -1

    def _send_text(self, text: bytes) -> None:
        self._out.append(b'%b{"content":"%b"}%b' % (self._before_delta, text, self._after_delta))

    def _content(self, text: str) -> None:
        self._count(text)
        self._send(b'{"content":' + orjson.dumps(text) + b"}")

    def _arguments(self, index: int, part: str) -> None:
        call = {"index": self._tools[index], "function": {"arguments": part}}
        self._send(orjson.dumps({"tool_calls": [call]}))

    def _send(self, delta: bytes) -> None:
        if not self._before_delta:
            raise KeyError("message_start")
        self._out.append(self._before_delta + delta + self._after_delta)

    def _last_chunks(self) -> None:
        if self._refusal:
            self._send(orjson.dumps({"refusal": self._refusal}))
        reason = orjson.dumps(openai_answer.finish_reason(self.finish_reason))
        end = b'{},"logprobs":null,"finish_reason":' + reason + b"}]" + self._end_of_chunk()
        if not self._before_delta:
            raise KeyError("message_start")
        self._out.append(self._before_delta + end)
        if self._include_usage:
            head = self._before_delta.partition(b'"choices":')[0]
            usage = orjson.dumps(openai_answer.usage(self._usage))
            self._out.append(head + b'"choices":[],"usage":' + usage + b"}\n\n")
        self._out.append(b"data: [DONE]\n\n")
        self._finish()

    def _done(self) -> None:
        """Not of Anthropic: its streams end with message_stop."""

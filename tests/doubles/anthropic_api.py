"""Anthropic's Messages API as the network sees it, without a model: a word is a token.

Follows the vendor's public documentation as stored in November 2026: the API reference (Messages, Models, Count tokens,
Errors) and "Streaming messages"; what each model refuses is in anthropic_rules.py, and the SDK's own types were held
against it. Where the documentation does not quote an error's words, they are made up; statuses and types never are.

What it answers: "You asked: …", or what the tool said, "call NAME with {json}" in the prompt
calls that tool, `[[…]]` in it is what doubles/faults.py understands.

In a test:      with AnthropicApi() as api: … api.url, api.key, api.requests, api.script(Fault(status=529))
As a process:   python tests/doubles/anthropic_api.py [--port N]: prints {"url": …, "port": …}
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a program, too
from doubles import anthropic_rules, scripted_http
from doubles.anthropic_rules import MODELS, Model, Refused
from doubles.faults import Fault
from doubles.scripted_http import Connection, Double, Exchange

KEY = "sk-ant-api03-of-the-double"
ERRORS = {
    400: ("invalid_request_error", "Bad request"),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "Not found"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}
_CALL = re.compile(r"call ([\w-]+) with (\{[^{}]*\})")
_DIRECTIVE = re.compile(r"\s*\[\[[^\]]*\]\]")


class AnthropicApi(Double):
    """The API. It takes the keys in `keys` (`key` is one of them); `models` are those that it has."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port)
        self.key = KEY
        self.keys = [KEY]
        self.hidden_models: list[str] = []

    def answer(self, exchange: Exchange, connection: Connection, fault: Fault) -> Coroutine[Any, Any, None] | None:
        request_id = f"req_{exchange.number:024d}"
        if fault.first_byte:
            return self._later(exchange, connection, fault, request_id)
        return self._answer(exchange, connection, fault, request_id)

    async def _later(self, exchange: Exchange, connection: Connection, fault: Fault, request_id: str) -> None:
        await asyncio.sleep(fault.first_byte)
        answering = self._answer(exchange, connection, fault, request_id)
        if answering is not None:
            await answering

    def _answer(
        self, exchange: Exchange, connection: Connection, fault: Fault, request_id: str
    ) -> Coroutine[Any, Any, None] | None:
        if fault.garbage == "http":
            connection.transport.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            connection.cut()
            return None
        try:
            anthropic_rules.check_headers(exchange.headers, set(self.keys))
            if fault.status is not None:
                kind, message = ERRORS.get(fault.status, ("api_error", "Internal server error"))
                raise Refused(message, fault.status, fault.error_type or kind)
            return self._route(exchange, connection, fault, request_id)
        except (Refused, KeyError, TypeError, AttributeError, ValueError) as error:
            # What the checks do not foresee the real one refuses, too: it holds the whole body against its schema.
            refused = error if isinstance(error, Refused) else Refused(f"Input should be valid ({error!r})")
            told = {"type": refused.kind, "message": refused.message}
            document = {"type": "error", "error": told, "request_id": request_id}
            headers = _headers(request_id)
            if fault.retry_after is not None:
                headers += f"retry-after: {fault.retry_after}\r\n".encode()
            connection.send(refused.status, json.dumps(document).encode(), headers)
            return None

    def _route(
        self, exchange: Exchange, connection: Connection, fault: Fault, request_id: str
    ) -> Coroutine[Any, Any, None] | None:
        method, path = exchange.method, exchange.path
        if method == "GET" and path.startswith("/v1/models"):
            connection.send(200, json.dumps(self._models(path, exchange.query)).encode(), _headers(request_id))
            return None
        if method != "POST" or path not in ("/v1/messages", "/v1/messages/count_tokens"):
            raise Refused("Not found", 404, "not_found_error")
        if exchange.body_bytes > anthropic_rules.MOST_BODY_BYTES:
            raise Refused("Request exceeds the maximum size", 413, "request_too_large")
        try:
            body = json.loads(exchange.body)
        except ValueError:
            raise Refused("The request body is not valid JSON") from None
        if path.endswith("/count_tokens"):
            self._known(anthropic_rules.check(body, exchange.headers["anthropic-version"], counting=True))
            connection.send(200, json.dumps({"input_tokens": input_tokens(body)}).encode(), _headers(request_id))
            return None
        model = anthropic_rules.check(body, exchange.headers["anthropic-version"])
        self._known(model)
        message = Message(body, model, fault, exchange.number)
        if body.get("stream"):
            return self._stream(connection, message, fault, request_id)
        document = json.dumps(message.whole()).encode()
        if fault.garbage:
            document = b"<html>It works!</html>"
        if fault.cut_after is not None:
            connection.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(document)
                + document[: len(document) // 2]
            )
            connection.cut()
            return None
        connection.send(200, document, _headers(request_id))
        return None

    def _known(self, model: Model) -> None:
        if model.id in self.hidden_models:
            raise Refused(f"model: {model.id}", 404, "not_found_error")

    def _models(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        models = [model for model in MODELS.values() if model.id not in self.hidden_models]
        name = path.removeprefix("/v1/models").strip("/")
        if name:
            model = anthropic_rules.model_of(name)
            self._known(model)
            return model.described()
        ids = [model.id for model in models]
        after = query.get("after_id")
        if after in ids:
            models = models[ids.index(after) + 1 :]
        limit = int(query.get("limit", "20"))
        page = [model.described() for model in models[:limit]]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        return {"data": page, "has_more": len(models) > limit, "first_id": first, "last_id": last}

    async def _stream(self, connection: Connection, message: Message, fault: Fault, request_id: str) -> None:
        connection.begin(
            200, _headers(request_id) + b"Cache-Control: no-cache\r\n", b"text/event-stream; charset=utf-8"
        )
        delay = self.token_delay if fault.token_delay is None else fault.token_delay
        events = message.events()
        await connection.chunk(next(events))
        if fault.garbage:
            await connection.chunk(b"event: content_block_delta\ndata: {no JSON at all\n\n")
        for number, event in enumerate(events):
            if fault.cut_after == number:
                connection.cut()
                return
            if fault.error_after == number:
                kind = fault.error_type or "overloaded_error"
                error = {"type": "error", "error": {"type": kind, "message": "Overloaded"}, "request_id": request_id}
                await connection.chunk(_event("error", error))
                break
            if delay:
                await asyncio.sleep(delay)
            await connection.chunk(event)
        connection.last_chunk()


class Message:
    """What the model says to one request: the whole of it, or as events."""

    def __init__(self, body: dict[str, Any], model: Model, fault: Fault, number: int) -> None:
        self.id, self.model, self.fault = f"msg_{number:024d}", body["model"], fault
        self.input_tokens = input_tokens(body)
        self.thinking = self._thinking(body, model)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        prompt = last_text(body)
        self.stop: tuple[str, str | None] = ("end_turn", None)
        names = [tool["name"] for tool in body.get("tools") or []]
        choice = body.get("tool_choice") or {"type": "auto"}
        if names and choice["type"] != "none":
            self.calls = [(name, json.loads(given)) for name, given in _CALL.findall(prompt) if name in names]
            if not self.calls and choice["type"] in ("any", "tool"):
                self.calls = [(choice.get("name", names[0]), {})]
            if choice.get("disable_parallel_tool_use"):
                self.calls = self.calls[:1]
        self.words = self._words(body, prompt)

    def _thinking(self, body: Mapping[str, Any], model: Model) -> str | None:
        asked = body.get("thinking") or {}
        if self.fault.thinking is not None:
            return self.fault.thinking
        if asked.get("type") == "enabled" or asked.get("display") == "summarized":
            return "Let me think about that."
        return "" if model.thinks or asked.get("type") == "adaptive" else None

    def _words(self, body: Mapping[str, Any], prompt: str) -> list[str]:
        if self.fault.words is not None:
            words = [f"word{number} " for number in range(self.fault.words)]
        else:
            text = self.fault.text
            if text is None:
                text = "I will ask the tool." if self.calls else f"You asked: {prompt}"
            for stop in body.get("stop_sequences") or []:
                if stop in text:
                    text, self.stop = text.partition(stop)[0], ("stop_sequence", stop)
            words = re.findall(r"\S+\s*|\s+", text)
        if self.calls:
            self.stop = ("tool_use", None)
        if len(words) > body["max_tokens"]:
            words, self.stop = words[: body["max_tokens"]], ("max_tokens", None)
        return words

    @property
    def output_tokens(self) -> int:
        """What is billed: thinking and tool calls, too."""
        thought = 10 + len((self.thinking or "").split()) if self.thinking is not None else 0
        return len(self.words) + thought + 12 * len(self.calls)

    def usage(self, output_tokens: int) -> dict[str, Any]:
        """The usage block with that many output tokens."""
        fault = self.fault
        return {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": fault.cache_write_5m + fault.cache_write_1h,
            "cache_read_input_tokens": fault.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": fault.cache_write_5m,
                "ephemeral_1h_input_tokens": fault.cache_write_1h,
            },
            "output_tokens": output_tokens,
            "service_tier": "standard",
        }

    def _frame(self, content: list[Any], stop: tuple[str | None, str | None], usage: Any) -> dict[str, Any]:
        frame = {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content}
        frame |= {"stop_reason": stop[0], "stop_sequence": stop[1]}
        return frame | ({"usage": usage} if self.fault.usage else {})

    def _called(self, place: int) -> dict[str, Any]:
        name, given = self.calls[place]
        return {"type": "tool_use", "id": f"toolu_{self.id[4:]}_{place}", "name": name, "input": given}

    def whole(self) -> dict[str, Any]:
        """The unstreamed answer."""
        content: list[dict[str, Any]] = []
        if self.thinking is not None:
            content.append({"type": "thinking", "thinking": self.thinking, "signature": "c2lnbmF0dXJl"})
        if self.words:
            content.append({"type": "text", "text": "".join(self.words)})
        content += [self._called(place) for place in range(len(self.calls))]
        return self._frame(content, self.stop, self.usage(self.output_tokens))

    def events(self) -> Iterator[bytes]:
        """The streamed answer."""
        start = self._frame([], (None, None), self.usage(1))
        yield _event("message_start", {"type": "message_start", "message": start})
        place = 0
        if self.thinking is not None:
            yield _start(place, {"type": "thinking", "thinking": "", "signature": ""})
            yield _event("ping", {"type": "ping"})
            if self.thinking:
                yield _delta(place, {"type": "thinking_delta", "thinking": self.thinking})
            yield _delta(place, {"type": "signature_delta", "signature": "c2lnbmF0dXJl"})
            yield _stop(place)
            place += 1
        if self.words:
            yield _start(place, {"type": "text", "text": ""})
            if self.thinking is None:
                yield _event("ping", {"type": "ping"})
            for word in self.words:
                yield _delta(place, {"type": "text_delta", "text": word})
            yield _stop(place)
            place += 1
        for number in range(len(self.calls)):
            block = self._called(number)
            yield _start(place, {**block, "input": {}})
            yield _delta(place, {"type": "input_json_delta", "partial_json": ""})
            given = json.dumps(block["input"])
            for part in (given[: len(given) // 2], given[len(given) // 2 :]):
                yield _delta(place, {"type": "input_json_delta", "partial_json": part})
            yield _stop(place)
            place += 1
        delta = {"stop_reason": self.stop[0], "stop_sequence": self.stop[1]}
        end: dict[str, Any] = {"type": "message_delta", "delta": delta}
        if self.fault.usage:
            end["usage"] = {"output_tokens": self.output_tokens}
        yield _event("message_delta", end)
        yield _event("message_stop", {"type": "message_stop"})


def _headers(request_id: str) -> bytes:
    return f"request-id: {request_id}\r\nanthropic-organization-id: org-of-the-double\r\n".encode()


def _event(name: str, document: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


def _start(place: int, block: Mapping[str, Any]) -> bytes:
    document = {"type": "content_block_start", "index": place, "content_block": block}
    return _event("content_block_start", document)


def _delta(place: int, delta: Mapping[str, Any]) -> bytes:
    return _event("content_block_delta", {"type": "content_block_delta", "index": place, "delta": delta})


def _stop(place: int) -> bytes:
    return _event("content_block_stop", {"type": "content_block_stop", "index": place})


def texts(content: Any) -> Iterator[str]:
    """Every text in a message's content, those of tool results included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in content:
            if block.get("type") == "text":
                yield block["text"]
            elif block.get("type") == "tool_result":
                yield from texts(block.get("content"))


def last_text(body: Mapping[str, Any]) -> str:
    """The prompt: what the last message says, without what is for the double."""
    message = body["messages"][-1]
    images = (
        sum(1 for block in message["content"] if block["type"] == "image")
        if isinstance(message["content"], list)
        else 0
    )
    text = _DIRECTIVE.sub("", " ".join(texts(message["content"])))
    return f"({images} images) {text}" if images else text


def input_tokens(body: Mapping[str, Any]) -> int:
    """A word is a token, an image is 100, and each message adds 3."""
    count = sum(len(text.split()) for text in texts(body.get("system")))
    for message in body["messages"]:
        count += 3 + sum(len(text.split()) for text in texts(message["content"]))
        if isinstance(message["content"], list):
            count += sum(100 for block in message["content"] if block["type"] == "image")
    return count + 20 * len(body.get("tools") or [])


def main() -> None:
    """Serve as a process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    scripted_http.run(AnthropicApi(arguments.host, arguments.port))


if __name__ == "__main__":
    main()

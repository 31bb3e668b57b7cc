"""A self-hosted service that speaks OpenAI's chat completions, without a model: a word is a token.

Follows OpenAI's API reference (Chat completions, streaming, errors) as its Python SDK types it, and the readiness and
liveness of the TAO microservices. tao_server.py is the faithful double of a TAO service; this one streams, has tools
and usage, takes bodies of any size, is fast, and fails as it is told (doubles/faults.py).

In a test:      with OpenAIService(job_id="…") as service: … service.url, service.requests, service.script(Fault(…))
As a process:   python tests/doubles/openai_service.py --job-id ID [--port N]: prints {"url": …, "port": …}
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a program, too
from doubles import scripted_http
from doubles.faults import Fault
from doubles.scripted_http import KEPT_BODY, Connection, Double, Exchange

CHAT = "/v1/chat/completions"
READINESS = "/api/v1/health/readiness"
LIVENESS = "/api/v1/health/liveness"
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_CALL = re.compile(r"call ([\w-]+) with (\{[^{}]*\})")
_DIRECTIVE = re.compile(r"\s*\[\[[^\]]*\]\]")


class OpenAIService(Double):
    """The service. `ready` False: it is still loading its model."""

    def __init__(self, job_id: str, host: str = "127.0.0.1", port: int = 0, model: str = "org/model") -> None:
        super().__init__(host, port)
        self.job_id, self.model, self.ready = job_id, model, True

    def answer(self, exchange: Exchange, connection: Connection, fault: Fault) -> Coroutine[Any, Any, None] | None:
        return (
            self._later(exchange, connection, fault) if fault.first_byte else self._answer(exchange, connection, fault)
        )

    async def _later(self, exchange: Exchange, connection: Connection, fault: Fault) -> None:
        await asyncio.sleep(fault.first_byte)
        answering = self._answer(exchange, connection, fault)
        if answering is not None:
            await answering

    def _answer(self, exchange: Exchange, connection: Connection, fault: Fault) -> Coroutine[Any, Any, None] | None:
        if exchange.path == READINESS:
            body = {"status": "ready" if self.ready else "not_ready", "job_id": self.job_id}
            connection.send(200 if self.ready else 503, json.dumps(body).encode())
        elif exchange.path == LIVENESS:
            connection.send(200, json.dumps({"status": "healthy", "job_id": self.job_id}).encode())
        elif exchange.method != "POST" or exchange.path != CHAT:
            connection.send(404, b"<!doctype html>\n<title>404 Not Found</title>\n", b"", b"text/html")
        elif fault.garbage == "http":
            connection.transport.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            connection.cut()
        elif fault.status is not None:
            _refuse(connection, fault.status, "The server is busy.", fault)
        elif not self.ready:
            _refuse(connection, 503, "Model is still loading", fault)
        elif exchange.body_bytes > KEPT_BODY:
            return self._complete(
                connection, Completion({"messages": []}, self.model, _of_bulk(exchange, fault)), False
            )
        else:
            return self._chat(exchange, connection, fault)
        return None

    def _chat(self, exchange: Exchange, connection: Connection, fault: Fault) -> Coroutine[Any, Any, None] | None:
        try:
            body = json.loads(exchange.body)
            check(body)
            completion = Completion(body, self.model, fault)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _refuse(connection, 400, f"{type(error).__name__}: {error}", fault)
            return None
        return self._complete(connection, completion, bool(body.get("stream")))

    def _complete(
        self, connection: Connection, completion: Completion, stream: bool
    ) -> Coroutine[Any, Any, None] | None:
        fault = completion.fault
        if stream:
            return self._stream(connection, completion, fault)
        document = b"<html>It works!</html>" if fault.garbage else json.dumps(completion.whole()).encode()
        if fault.cut_after is not None:
            connection.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(document)
                + document[: len(document) // 2]
            )
            connection.cut()
        else:
            connection.send(200, document, b"x-request-id: %b\r\n" % completion.id.encode())
        return None

    async def _stream(self, connection: Connection, completion: Completion, fault: Fault) -> None:
        connection.begin(200, b"x-request-id: %b\r\n" % completion.id.encode(), b"text/event-stream; charset=utf-8")
        delay = self.token_delay if fault.token_delay is None else fault.token_delay
        events = completion.events()
        await connection.chunk(next(events))
        if fault.garbage:
            await connection.chunk(b"data: {no JSON at all\n\n")
        for number, event in enumerate(events):
            if fault.cut_after == number:
                connection.cut()
                return
            if fault.error_after == number:
                error = {
                    "message": "CUDA error",
                    "type": fault.error_type or "server_error",
                    "param": None,
                    "code": None,
                }
                await connection.chunk(_event({"error": error}))
                break
            if delay:
                await asyncio.sleep(delay)
            await connection.chunk(event)
        connection.last_chunk()


class Completion:
    """What the model says to one request: the whole of it, or as events."""

    def __init__(self, body: dict[str, Any], model: str, fault: Fault) -> None:
        self.fault, self.model = fault, model
        self.id, self.created = f"chatcmpl-{time.monotonic_ns():x}", int(time.time())
        self.prompt_tokens = prompt_tokens(body)
        self.choices = body.get("n") or 1
        self.usage_asked = bool((body.get("stream_options") or {}).get("include_usage"))
        self.finish_reason = "stop"
        prompt = last_text(body)
        names = [tool["function"]["name"] for tool in body.get("tools") or []]
        self.calls: list[tuple[str, str]] = []
        choice: Any = body.get("tool_choice") or "auto"
        if names and choice != "none":
            self.calls = [(name, given) for name, given in _CALL.findall(prompt) if name in names]
            if not self.calls and choice != "auto":
                self.calls = [(names[0] if choice == "required" else choice["function"]["name"], "{}")]
            if body.get("parallel_tool_calls") is False:
                self.calls = self.calls[:1]
        self.words = self._words(body, prompt)

    def _words(self, body: Mapping[str, Any], prompt: str) -> list[str]:
        if self.fault.words is not None:
            words = [f"word{number} " for number in range(self.fault.words)]
        else:
            text = self.fault.text if self.fault.text is not None else "" if self.calls else f"You asked: {prompt}"
            stops = body.get("stop") or []
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.partition(stop)[0]
            words = re.findall(r"\S+\s*|\s+", text)
        most = body.get("max_completion_tokens") or body.get("max_tokens") or len(words)
        if self.calls:
            self.finish_reason = "tool_calls"
        elif len(words) > most:
            words, self.finish_reason = words[:most], "length"
        return words

    @property
    def usage(self) -> dict[str, Any]:
        """The usage block."""
        produced = self.choices * (len(self.words) + 12 * len(self.calls))
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": produced,
            "total_tokens": self.prompt_tokens + produced,
            "prompt_tokens_details": {"cached_tokens": self.fault.cache_read},
        }

    def whole(self) -> dict[str, Any]:
        """The unstreamed answer."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.words) or None, "refusal": None}
        if self.calls:
            message["tool_calls"] = [self._call(place) for place in range(len(self.calls))]
        document = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {"index": index, "message": message, "finish_reason": self.finish_reason, "logprobs": None}
                for index in range(self.choices)
            ],
        }
        return document | ({"usage": self.usage} if self.fault.usage else {})

    def _call(self, place: int) -> dict[str, Any]:
        name, given = self.calls[place]
        return {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": given}}

    def events(self) -> Iterator[bytes]:
        """The streamed answer."""
        frame: dict[str, Any] = {"id": self.id, "object": "chat.completion.chunk"}
        frame |= {"created": self.created, "model": self.model}
        if self.usage_asked:
            frame["usage"] = None

        def event(delta: dict[str, Any], finish_reason: str | None = None) -> Iterator[bytes]:
            for index in range(self.choices):
                yield _event(frame | {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]})

        yield from event({"role": "assistant", "content": ""})
        for word in self.words:
            yield from event({"content": word})
        for place in range(len(self.calls)):
            call = self._call(place)
            given = call["function"]["arguments"]
            begun = {**call, "index": place, "function": {**call["function"], "arguments": ""}}
            yield from event({"tool_calls": [begun]})
            for part in (given[: len(given) // 2], given[len(given) // 2 :]):
                yield from event({"tool_calls": [{"index": place, "function": {"arguments": part}}]})
        yield from event({}, self.finish_reason)
        if self.usage_asked and self.fault.usage:
            yield _event(frame | {"choices": [], "usage": self.usage})
        yield b"data: [DONE]\n\n"


def check(body: Any) -> None:
    """Raises: ValueError, TypeError or KeyError, where the reference does not allow the body."""
    if not isinstance(body, dict):
        raise TypeError("the body must be an object")
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("[] is too short - 'messages'")
    for message in messages:
        if message["role"] not in _ROLES:
            raise ValueError(f"'{message['role']}' is not one of {_ROLES} - 'messages.role'")
        if message["role"] == "tool" and not message.get("tool_call_id"):
            raise ValueError("missing 'tool_call_id' - 'messages'")
        if message.get("content") is None and not message.get("tool_calls"):
            raise ValueError("expected a string or a list - 'messages.content'")
        if isinstance(message.get("content"), list):
            for item in message["content"]:
                if item["type"] == "image_url" and not item["image_url"]["url"]:
                    raise ValueError("an image without an address")
    for name, most in (("temperature", 2), ("top_p", 1)):
        value = body.get(name)
        if value is not None and not 0 <= value <= most:
            raise ValueError(f"{value} is greater than the maximum of {most} - '{name}'")


def texts(content: Any) -> Iterator[str]:
    """Every text in a message's content."""
    if isinstance(content, str):
        yield content
    else:
        yield from (item["text"] for item in content or [] if item.get("type") == "text")


def last_text(body: Mapping[str, Any]) -> str:
    """The prompt: what the last message says, without what is for the double."""
    if not body["messages"]:
        return ""
    content = body["messages"][-1].get("content")
    images = sum(1 for item in content if item["type"] == "image_url") if isinstance(content, list) else 0
    text = _DIRECTIVE.sub("", " ".join(texts(content)))
    return f"({images} images) {text}" if images else text


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """A word is a token, and each message adds 3."""
    return sum(3 + sum(len(text.split()) for text in texts(message.get("content"))) for message in body["messages"])


def _of_bulk(exchange: Exchange, fault: Fault) -> Fault:
    text = f"You sent {exchange.body_bytes} bytes of sha256 {exchange.sha256}"
    return fault if fault.text or fault.words else Fault(text=text, usage=fault.usage)


def _event(document: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def _refuse(connection: Connection, status: int, message: str, fault: Fault) -> None:
    kind = fault.error_type or _KINDS.get(status, "server_error")
    document = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    headers = b"" if fault.retry_after is None else f"Retry-After: {fault.retry_after}\r\n".encode()
    connection.send(status, json.dumps(document).encode(), headers)


def main() -> None:
    """Serve as a process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--job-id", default="openai-service")
    arguments = parser.parse_args()
    scripted_http.run(OpenAIService(arguments.job_id, arguments.host, arguments.port))


if __name__ == "__main__":
    main()

"""The gateway between two doubles, Claude's API and a service of the registry: what most of its tests need."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doubles.anthropic_api import AnthropicApi
from doubles.openai_service import OpenAIService
from doubles.scripted_http import Double, Exchange
from gateway_process import Gateway, serving_gateway
from raw_http import Answer, ask, request

CLAUDE, THINKER, SERVICE = "claude-haiku-4-5", "claude-opus-5-5", "service-1"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLERS: Mapping[str, Sequence[str]] = {
    "app": ("--team", "web", "--project", "shop"),
    "two-a-minute": ("--requests-per-minute", "2"),
    "few-tokens": ("--tokens-per-minute", "50"),
    "poor": ("--usd-per-day", "0.0000001"),
    "thrifty": ("--usd-per-day", "0.1"),
    "claude-only": ("--allow-model", CLAUDE),
}


@dataclass
class Stack:
    """The gateway and what is behind it."""

    gateway: Gateway
    claude: AnthropicApi
    service: OpenAIService

    def upstream(self, model: str) -> Double:
        """The double that the model is behind."""
        return self.service if model == SERVICE else self.claude

    def last(self, model: str) -> Exchange:
        """The last request that reached that model's double."""
        return self.upstream(model).requests[-1]


@contextlib.contextmanager
def gateway_stack(folder: Path, **options: Any) -> Iterator[Stack]:
    """The stack, with CALLERS and two more services of one arch, so that the arch's name is ambiguous."""
    with AnthropicApi() as claude, OpenAIService(SERVICE) as service:
        services = {SERVICE: service.url, "twin": service.url}
        known: dict[str, Any] = {"callers": CALLERS, "services": services, **options}
        with serving_gateway(folder, upstream_url=claude.url, upstream_key=claude.key, **known) as gateway:
            yield Stack(gateway, claude, service)


def tags_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a row of the request log."""
    return dict(json.loads(row["tags"])) if row["tags"] else {}


def asking(stack: Stack, path: str, model: str, prompt: str, caller: str = "app", **fields: Any) -> bytes:
    """A request with that prompt, in the shape of the path."""
    body = {"model": model, "max_tokens": 100_000, "messages": [{"role": "user", "content": prompt}], **fields}
    if model == CLAUDE:
        body["max_tokens"] = min(body["max_tokens"], 60_000)
    return request("POST", path, key=stack.gateway.keys[caller], body=body)


def send(stack: Stack, path: str, model: str, prompt: str, caller: str = "app", **fields: Any) -> Answer:
    """Its answer."""
    return ask(stack.gateway.port, asking(stack, path, model, prompt, caller, **fields), timeout=60)


def seen(stack: Stack, model: str, text: str) -> list[Exchange]:
    """The requests with that text that reached the model's double."""
    return [one for one in stack.upstream(model).requests if text.encode() in one.body]


def request_id_of(head: bytes) -> str:
    """The id of the request whose answer begins so."""
    line = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"x-request-id:"))
    return line.split(b":")[1].strip().decode()


def body_for(model: str, prompt: str) -> dict[str, Any]:
    """A body that both endpoints take."""
    return {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": prompt}]}

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

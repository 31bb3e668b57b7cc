"""What Anthropic's Messages API refuses, and the models it has: the vendor's documentation as stored in November 2026.

Which models always think, refuse sampling values and refuse a forced tool is from the models' "What's new" pages
(Opus 4.7, Opus 5.5, Fable 5.1); the words of the errors are those of "Errors" and "Messages", where they are quoted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_BODY_BYTES = 32 << 20
# "Migrating to API version 2026-10-21": it has no temperature, top_p and top_k, whatever the model.
UNSAMPLED_VERSION = "2026-10-21"
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_FIELDS = {
    *(
        "model",
        "max_tokens",
        "messages",
        "system",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "tools",
    ),
    *("tool_choice", "thinking", "metadata", "service_tier", "output_config", "cache_control", "container", "speed"),
    *("inference_geo", "diagnostics", "prefill", "user_profile_id"),
}
_COUNTED = _FIELDS - {"max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "metadata"}
_BLOCKS = {
    "user": {"text", "image", "document", "tool_result", "search_result"},
    "assistant": {"text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"},
    "system": {"text"},
}
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


@dataclass(frozen=True)
class Model:
    """One model. `thinks`: always, and is not to be forced to a tool. `samples`: takes temperature, top_p and top_k."""

    id: str
    name: str
    created_at: str
    most_tokens: int = 64_000
    thinks: bool = False
    samples: bool = True

    def described(self) -> dict[str, Any]:
        """As GET /v1/models/{id} has it."""
        yes, no = {"supported": True}, {"supported": False}
        types = {"adaptive": yes, "enabled": no if self.thinks else yes}
        return {
            "type": "model",
            "id": self.id,
            "display_name": self.name,
            "created_at": self.created_at,
            "lifecycle": "active",
            "line": self.id.split("-")[1],
            "deprecated_at": None,
            "retires_at": None,
            "max_input_tokens": 200_000,
            "max_tokens": self.most_tokens,
            "capabilities": {
                "batch": yes,
                "citations": yes,
                "image_input": yes,
                "pdf_input": yes,
                "structured_outputs": yes,
                "thinking": {"supported": True, "types": types},
            },
        }


MODELS = {
    model.id: model
    for model in (
        Model("claude-fable-5-1", "Claude Fable 5.1", "2026-08-11T00:00:00Z", 128_000, thinks=True, samples=False),
        Model("claude-opus-5-5", "Claude Opus 5.5", "2026-09-22T00:00:00Z", 128_000, thinks=True, samples=False),
        Model("claude-opus-5", "Claude Opus 5", "2026-06-16T00:00:00Z", 128_000, samples=False),
        Model("claude-sonnet-5-5", "Claude Sonnet 5.5", "2026-10-07T00:00:00Z", samples=False),
        Model("claude-haiku-5-5", "Claude Haiku 5.5", "2026-10-20T00:00:00Z"),
        Model("claude-sonnet-4-5-20250929", "Claude Sonnet 4.5", "2025-09-29T00:00:00Z"),
        Model("claude-haiku-4-5-20251001", "Claude Haiku 4.5", "2025-10-01T00:00:00Z"),
    )
}
ALIASES = {"claude-sonnet-4-5": "claude-sonnet-4-5-20250929", "claude-haiku-4-5": "claude-haiku-4-5-20251001"}


class Refused(Exception):
    """The API's answer to a request that it does not take."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.message, self.status, self.kind = message, status, kind


def check_headers(headers: Mapping[str, str], keys: set[str]) -> None:
    """Raises: Refused, where the key or the version of the API is missing or wrong."""
    key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    if not key:
        raise Refused("x-api-key header is required", 401, "authentication_error")
    if key not in keys:
        raise Refused("invalid x-api-key", 401, "authentication_error")
    version = headers.get("anthropic-version")
    if version is None:
        raise Refused("anthropic-version: header is required")
    if version not in ("2023-01-01", "2023-06-01", UNSAMPLED_VERSION):
        raise Refused(f'anthropic-version: "{version}" is not a valid version')


def model_of(name: str) -> Model:
    """Raises: Refused (404), where there is no such model."""
    bare = name.partition("[")[0]
    try:
        return MODELS[ALIASES.get(bare, bare)]
    except KeyError:
        raise Refused(f"model: {name}", 404, "not_found_error") from None


def check(body: Any, version: str, *, counting: bool = False) -> Model:
    """The model that the body asks for. `counting`: it is for count_tokens, which takes fewer fields.

    Raises: Refused, as the API does.
    """
    if not isinstance(body, dict):
        raise Refused("Input should be a valid dictionary")
    for name in body:
        if name not in (_COUNTED if counting else _FIELDS):
            raise Refused(f"{name}: Extra inputs are not permitted")
    required = ("messages", "model") if counting else ("max_tokens", "messages", "model")
    for name in required:
        if name not in body:
            raise Refused(f"{name}: Field required")
    if not isinstance(body["model"], str) or not body["model"]:
        raise Refused("model: Input should be a valid string")
    model = model_of(body["model"])
    if not counting:
        most = body["max_tokens"]
        if isinstance(most, bool) or not isinstance(most, int):
            raise Refused("max_tokens: Input should be a valid integer")
        if most < 1:
            raise Refused("max_tokens: Input should be greater than or equal to 1")
        if most > model.most_tokens:
            raise Refused(
                f"max_tokens: {most} > {model.most_tokens}, which is the maximum allowed number of output tokens"
                f" for {body['model']}"
            )
    _check_sampling(body, model, version)
    _check_tools(body, model)
    _check_messages(body)
    return model


def _check_sampling(body: Mapping[str, Any], model: Model, version: str) -> None:
    for name in ("temperature", "top_p", "top_k"):
        if version == UNSAMPLED_VERSION and name in body:
            raise Refused(f"{name}: Extra inputs are not permitted")
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"{name}: Input should be a valid number")
        if not model.samples:
            raise Refused(f"`{name}` is deprecated for this model.")
        if name != "top_k" and not 0 <= value <= 1:
            raise Refused(f"{name}: range: 0..1")
    if body.get("temperature") is not None and body.get("top_p") is not None:
        raise Refused("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    stops = body.get("stop_sequences") or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise Refused("stop_sequences: Input should be a valid list")
    if any(not stop.strip() for stop in stops):
        raise Refused("stop_sequences: each stop sequence must contain non-whitespace")
    if not isinstance(body.get("stream", False), bool):
        raise Refused("stream: Input should be a valid boolean")
    kind = (body.get("thinking") or {}).get("type")
    if model.thinks and kind in ("disabled", "enabled"):
        raise Refused(
            f'"thinking.type.{kind}" is not supported for this model. Use "thinking.type.adaptive" and'
            ' "output_config.effort" to control thinking behavior.'
        )


def _check_tools(body: Mapping[str, Any], model: Model) -> None:
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise Refused("tools: Input should be a valid list")
    for place, tool in enumerate(tools):
        if not isinstance(tool, dict) or not _TOOL_NAME.fullmatch(str(tool.get("name", ""))):
            raise Refused(f"tools.{place}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if tool.get("type", "custom") == "custom":
            schema = tool.get("input_schema")
            if not isinstance(schema, dict):
                raise Refused(f"tools.{place}.custom.input_schema: Field required")
            if schema.get("type") != "object":
                raise Refused(f"tools.{place}.custom.input_schema.type: Input should be 'object'")
    choice = body.get("tool_choice")
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("auto", "any", "tool", "none"):
        raise Refused("tool_choice: Input tag does not match any of the expected tags: 'auto', 'any', 'tool', 'none'")
    if not tools:
        raise Refused("tool_choice: may only be specified while providing tools")
    if kind == "tool" and choice.get("name") not in [tool["name"] for tool in tools]:
        raise Refused(f"Tool '{choice.get('name')}' not found in provided tools")
    if model.thinks and kind in ("any", "tool"):
        raise Refused(f'tool_choice: type "{kind}" forces tool use, which is not supported for this model.')


def _check_messages(body: Mapping[str, Any]) -> None:
    messages = body["messages"]
    if not isinstance(messages, list):
        raise Refused("messages: Input should be a valid list")
    if not messages:
        raise Refused("messages: at least one message is required")
    system = body.get("system")
    if isinstance(system, list):
        for place, block in enumerate(system):
            if not isinstance(block, dict) or block.get("type") != "text" or not block.get("text"):
                raise Refused(f"system.{place}: text content blocks must be non-empty")
    elif system is not None and not isinstance(system, str):
        raise Refused("system: Input should be a valid string or list")
    uses: set[str] = set()
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _BLOCKS:
            raise Refused(f"{where}.role: Input should be 'user', 'assistant' or 'system'")
        if set(message) - {"role", "content"}:
            raise Refused(f"{where}.{min(set(message) - {'role', 'content'})}: Extra inputs are not permitted")
        if place == 0 and role != "user":
            raise Refused('messages: first message must use the "user" role')
        content = message.get("content")
        if isinstance(content, str):
            if not content and not (role == "assistant" and place == len(messages) - 1):
                raise Refused(f"{where}: user messages must have non-empty content")
            continue
        if not isinstance(content, list) or not content:
            raise Refused(f"{where}.content: Input should be a valid string or a non-empty list")
        uses = _check_blocks(where, role, content, uses)


def _check_blocks(where: str, role: str, content: list[Any], uses: set[str]) -> set[str]:
    made = set()
    for place, block in enumerate(content):
        at = f"{where}.content.{place}"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in _BLOCKS[role]:
            raise Refused(f"{at}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
        if kind == "text":
            if not isinstance(block.get("text"), str):
                raise Refused(f"{at}.text.text: Field required")
            if not block["text"]:
                raise Refused("messages: text content blocks must be non-empty")
        elif kind in ("image", "document"):
            _check_source(at, kind, block.get("source"))
        elif kind == "tool_use":
            if not isinstance(block.get("input"), dict):
                raise Refused(f"{at}.tool_use.input: Input should be a valid dictionary")
            made.add(str(block.get("id")))
        elif kind == "thinking" and not block.get("signature"):
            raise Refused(f"{at}.thinking.signature: Field required")
        elif kind == "tool_result" and block.get("tool_use_id") not in uses:
            raise Refused(
                f"{at}: unexpected `tool_use_id` found in `tool_result` blocks: {block.get('tool_use_id')}. Each"
                " `tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
    if uses and role == "user":
        answered = {block.get("tool_use_id") for block in content if block.get("type") == "tool_result"}
        if uses - answered:
            raise Refused(
                f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after:"
                f" {', '.join(sorted(uses - answered))}."
            )
    return made


def _check_source(at: str, kind: str, source: Any) -> None:
    form = source.get("type") if isinstance(source, dict) else None
    if form == "url":
        if not str(source.get("url", "")).startswith("https://"):
            raise Refused(f"{at}.{kind}.source.url: Only HTTPS URLs are supported.")
    elif form == "base64":
        media_type = source.get("media_type")
        if kind == "image" and media_type not in IMAGE_TYPES:
            raise Refused(f"{at}.image.source.base64.media_type: Input should be one of {', '.join(IMAGE_TYPES)}")
        try:
            decoded = base64.b64decode(str(source.get("data", "")), validate=True)
        except (ValueError, binascii.Error):
            raise Refused(f"{at}.{kind}.source.base64: invalid base64 data") from None
        if kind == "image" and not decoded:
            raise Refused(f"{at}.image.source.base64.data: image cannot be empty")
    elif form not in ("file", "text", "content"):
        raise Refused(f"{at}.{kind}.source: Input tag '{form}' does not match any of the expected tags")

"""A request of `POST /v1/messages` as one of `POST /v1/chat/completions`, for services that speak OpenAI's format.

gateway.yaml says which fields are ignored and which are refused, and why. Hints for Anthropic's prompt cache
(`cache_control`) are left out, wherever they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference_service.gateway.translation import anthropic_messages, facts, fields
from inference_service.gateway.translation.fields import Json, Untranslatable

_TRANSLATED = frozenset(
    {
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "output_config",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_openai(body: Mapping[str, Any]) -> Json:
    """The same request in OpenAI's format; `model` is taken as it is. A stream is asked for its usage.

    Raises:
        Untranslatable: a field that OpenAI's format has nothing for, or that is not what Anthropic's API takes.
    """
    fields.apply_rules(body, _TRANSLATED, facts.load().from_anthropic)
    request: Json = {
        "model": fields.text(body.get("model"), "model"),
        "messages": anthropic_messages.to_openai(body.get("system"), body.get("messages")),
        "max_tokens": fields.whole_number(body.get("max_tokens"), "max_tokens"),
    }
    if body.get("stream") is not None:
        request["stream"] = fields.true_or_false(body["stream"], "stream")
        if request["stream"]:
            request["stream_options"] = {"include_usage": True}
    if body.get("stop_sequences"):
        request["stop"] = [
            fields.text(stop, path) for path, stop in fields.items(body["stop_sequences"], "stop_sequences")
        ]
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            request[name] = fields.number(body[name], name, 0, 1, "Anthropic's")
    if body.get("top_k") is not None:  # Not of OpenAI, but most servers of its format take it.
        request["top_k"] = fields.whole_number(body["top_k"], "top_k")
    if body.get("metadata") is not None:
        user = fields.mapping(body["metadata"], "metadata").get("user_id")
        if user is not None:
            request["user"] = fields.text(user, "metadata.user_id")
    if body.get("output_config") is not None:
        _output_config(fields.mapping(body["output_config"], "output_config"), request)
    _tools(body, request)
    return request


def _output_config(config: Mapping[str, Any], request: Json) -> None:
    for name, value in config.items():
        if value is None:
            continue
        if name == "effort":
            request["reasoning_effort"] = fields.text(value, "output_config.effort")
        elif name == "format":
            described = fields.mapping(value, "output_config.format")
            if described.get("type") != "json_schema":
                raise fields.unknown(described.get("type"), "output_config.format.type", "json_schema")
            schema = fields.mapping(described.get("schema"), "output_config.format.schema")
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        else:
            raise fields.unknown(name, "output_config", "effort, format")


def _tools(body: Mapping[str, Any], request: Json) -> None:
    tools = [_tool(fields.mapping(tool, path), path) for path, tool in fields.items(body.get("tools") or [], "tools")]
    if tools:
        request["tools"] = tools
    if body.get("tool_choice") is None:
        return
    choice = fields.mapping(body["tool_choice"], "tool_choice")
    kind = choice.get("type")
    if kind == "tool":
        name = fields.text(choice.get("name"), "tool_choice.name")
        translated: object = {"type": "function", "function": {"name": name}}
    elif isinstance(kind, str) and kind in _TOOL_CHOICES:
        translated = _TOOL_CHOICES[kind]
    else:
        raise fields.unknown(kind, "tool_choice.type", "auto, any, tool, none")
    if not tools:
        if kind in ("any", "tool"):
            raise Untranslatable("tool_choice", "there are no tools to choose from")
        return
    request["tool_choice"] = translated
    path = "tool_choice.disable_parallel_tool_use"
    if fields.true_or_false(choice.get("disable_parallel_tool_use") or False, path):
        request["parallel_tool_calls"] = False


def _tool(tool: Mapping[str, Any], path: str) -> Json:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise Untranslatable(
            f"{path}.type", f"{str(kind)[:80]!r} is a tool of Anthropic's own: only custom tools are translated"
        )
    function: Json = {"name": fields.text(tool.get("name"), f"{path}.name")}
    if tool.get("description") is not None:
        function["description"] = fields.text(tool["description"], f"{path}.description")
    function["parameters"] = fields.mapping(tool.get("input_schema"), f"{path}.input_schema")
    if tool.get("strict"):
        function["strict"] = fields.true_or_false(tool["strict"], f"{path}.strict")
    return {"type": "function", "function": function}

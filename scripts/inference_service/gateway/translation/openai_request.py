"""A request of `POST /v1/chat/completions` as one of `POST /v1/messages`.

gateway.yaml says which fields are ignored and which are refused, and why. `thinking`, `top_k` and `cache_control` (at a
part or a tool) are not of OpenAI's format; they are passed on, as Claude's own OpenAI endpoint does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference_service.gateway.translation import facts, fields, openai_messages
from inference_service.gateway.translation.fields import Json, Untranslatable

_TRANSLATED = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
        "user",
    }
)
_FORCED = ("any", "tool")


def to_anthropic(body: Mapping[str, Any], *, max_tokens_default: int | None = None) -> Json:
    """The same request for Anthropic; `model` is taken as it is, and decides what is refused.

    `max_tokens_default` stands in where the client set no limit (default: gateway.yaml's).

    Raises:
        Untranslatable: a field that Claude has nothing for, or that is not what OpenAI's API takes.
    """
    known = facts.load()
    fields.apply_rules(body, _TRANSLATED, known.from_openai)
    model = fields.text(body.get("model"), "model")
    refused = facts.refused_by(model)
    system, messages = openai_messages.to_anthropic(body.get("messages"))
    request: Json = {"model": model, "max_tokens": _max_tokens(body, max_tokens_default), "messages": messages}
    if system:
        request["system"] = system[0]["text"] if len(system) == 1 and len(system[0]) == 2 else system
    if body.get("stream") is not None:
        request["stream"] = fields.true_or_false(body["stream"], "stream")
    if body.get("stop") is not None:
        request["stop_sequences"] = _stop(body["stop"])
    _sampling(body, request, refused)
    _tools(body, request, refused)
    _thinking(body, request, refused)
    if body.get("response_format") is not None:
        _response_format(fields.mapping(body["response_format"], "response_format"), request)
    for name in ("user", "safety_identifier"):
        if body.get(name) is not None:
            request["metadata"] = {"user_id": fields.text(body[name], name)}
    return request


def includes_usage(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for the event with the usage at the stream's end.

    Raises:
        Untranslatable: `stream_options` are no object.
    """
    options = body.get("stream_options")
    return options is not None and fields.mapping(options, "stream_options").get("include_usage") is True


def _max_tokens(body: Mapping[str, Any], default: int | None) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        if body.get(name) is not None:
            return fields.whole_number(body[name], name)
    return default or facts.load().default_max_tokens


def _stop(stop: object) -> list[str]:
    sequences = [("stop", stop)] if isinstance(stop, str) else fields.items(stop, "stop")
    stops = [(path, fields.text(sequence, path)) for path, sequence in sequences]
    for path, sequence in stops:
        if not sequence.strip():
            raise Untranslatable(path, "Claude takes no stop sequence of white space alone")
    return [sequence for _, sequence in stops]


def _sampling(body: Mapping[str, Any], request: Json, refused: frozenset[str]) -> None:
    for name in ("temperature", "top_p", "top_k"):
        value = body.get(name)
        if value is None:
            continue
        if name == "top_k":
            value = fields.whole_number(value, name)
        elif fields.number(value, name, 0, 1, "Claude's") == 1:
            continue  # The default of both; some models refuse even that, and others one of the two beside the other.
        if facts.SAMPLING in refused:
            raise Untranslatable(name, f"{request['model']} takes no other {name} than its default")
        request[name] = value


def _thinking(body: Mapping[str, Any], request: Json, refused: frozenset[str]) -> None:
    if body.get("thinking") is not None:  # Not of OpenAI; Claude's own OpenAI endpoint takes it as well.
        request["thinking"] = fields.mapping(body["thinking"], "thinking")
    effort = body.get("reasoning_effort")
    if effort is None:
        return
    efforts = facts.load().efforts
    if not isinstance(effort, str) or effort not in efforts:
        raise fields.unknown(effort, "reasoning_effort", ", ".join(efforts))
    translated = efforts[effort]
    if translated is not None:
        request["output_config"] = {"effort": translated}
    elif facts.THINKING_DISABLED in refused:
        raise Untranslatable("reasoning_effort", f"the thinking of {request['model']} cannot be switched off: use low")
    else:
        request["thinking"] = {"type": "disabled"}


def _response_format(response_format: Mapping[str, Any], request: Json) -> None:
    kind = response_format.get("type")
    if kind == "text":
        return
    if kind == "json_object":
        raise Untranslatable("response_format.type", "Claude has no JSON mode without a schema: use json_schema")
    if kind != "json_schema":
        raise fields.unknown(kind, "response_format.type", "text, json_schema")
    described = fields.mapping(response_format.get("json_schema"), "response_format.json_schema")
    schema = fields.mapping(described.get("schema"), "response_format.json_schema.schema")
    request.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}


def _tools(body: Mapping[str, Any], request: Json, refused: frozenset[str]) -> None:
    tools = [_tool(fields.mapping(tool, path), path) for path, tool in fields.items(body.get("tools") or [], "tools")]
    choice = _tool_choice(body.get("tool_choice"), tools)
    if not tools:
        if choice["type"] in _FORCED:
            raise Untranslatable("tool_choice", "there are no tools to choose from")
        return
    request["tools"] = tools
    if choice["type"] in _FORCED and facts.FORCED_TOOL_CHOICE in refused:
        raise Untranslatable("tool_choice", f"{request['model']} cannot be made to use a tool: use auto")
    parallel = body.get("parallel_tool_calls")
    if parallel is not None and not fields.true_or_false(parallel, "parallel_tool_calls") and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    if choice != {"type": "auto"}:
        request["tool_choice"] = choice


def _tool(tool: Mapping[str, Any], path: str) -> Json:
    if tool.get("type") != "function":
        raise fields.unknown(tool.get("type"), f"{path}.type", "function")
    function = fields.mapping(tool.get("function"), f"{path}.function")
    translated: Json = {"name": fields.text(function.get("name"), f"{path}.function.name")}
    if function.get("description") is not None:
        translated["description"] = fields.text(function["description"], f"{path}.function.description")
    parameters = function.get("parameters")
    translated["input_schema"] = (
        {"type": "object", "properties": {}}
        if parameters is None
        else fields.mapping(parameters, f"{path}.function.parameters")
    )
    if function.get("strict"):
        translated["strict"] = fields.true_or_false(function["strict"], f"{path}.function.strict")
    return openai_messages.with_cache_control(translated, tool)


def _tool_choice(choice: object, tools: list[Json]) -> Json:
    """The choice; where OpenAI names those that are allowed, `tools` lose the others."""
    words = {None: "auto", "auto": "auto", "none": "none", "required": "any"}
    if choice is None or isinstance(choice, str):
        if choice not in words:
            raise fields.unknown(choice, "tool_choice", "none, auto, required")
        return {"type": words[choice]}
    kind = fields.mapping(choice, "tool_choice").get("type")
    if kind == "function":
        return {"type": "tool", "name": _chosen(choice, "tool_choice")}
    if kind != "allowed_tools":
        raise fields.unknown(kind, "tool_choice.type", "function, allowed_tools")
    allowed = fields.mapping(choice.get("allowed_tools"), "tool_choice.allowed_tools")  # type: ignore[attr-defined]
    mode = allowed.get("mode")
    if mode not in ("auto", "required"):
        raise fields.unknown(mode, "tool_choice.allowed_tools.mode", "auto, required")
    names = {
        _chosen(tool, path) for path, tool in fields.items(allowed.get("tools"), "tool_choice.allowed_tools.tools")
    }
    tools[:] = [tool for tool in tools if tool["name"] in names]
    return {"type": words[mode]}


def _chosen(choice: object, path: str) -> str:
    function = fields.mapping(fields.mapping(choice, path).get("function"), f"{path}.function")
    return fields.text(function.get("name"), f"{path}.function.name")

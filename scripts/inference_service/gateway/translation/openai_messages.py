"""The messages of `POST /v1/chat/completions` as those of `POST /v1/messages`.

Decisions that the two formats leave open:
- `system` and `developer` messages go to `system` in their order, wherever they stand: Claude's own OpenAI endpoint
  does the same, and only some models take them between the others.
- Messages of one role that follow each other become one; so do tool results and the user message after them, as
  Anthropic wants all results of a turn in the next message.
- An assistant's message without any content is left out, as Claude takes no empty ones. So are names of participants,
  and the `detail` of images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from inference_service.gateway.translation import facts, fields
from inference_service.gateway.translation.fields import Json, Untranslatable

_DATA_URI = re.compile(r"data:([^;,]*)(?:;[^;,]*)*;base64,")


def to_anthropic(messages: object) -> tuple[list[Json], list[Json]]:
    """The blocks for `system`, and the other messages.

    Raises:
        Untranslatable: something in them that Claude has nothing for, or that is not what OpenAI's API takes.
    """
    system: list[Json] = []
    translated: list[Json] = []
    for path, message in fields.items(messages, "messages"):
        message = fields.mapping(message, path)
        role = message.get("role")
        if role in ("system", "developer"):
            system += _texts(message.get("content"), f"{path}.content")
            continue
        if role == "user":
            content = _parts(message.get("content"), f"{path}.content")
            if not content:
                raise Untranslatable(f"{path}.content", "is empty, and Claude takes no empty messages")
        elif role == "assistant":
            content = _assistant(message, path)
        elif role == "tool":
            content, role = [_tool_result(message, path)], "user"
        else:
            raise fields.unknown(role, f"{path}.role", "developer, system, user, assistant, tool")
        if translated and translated[-1]["role"] == role:
            translated[-1]["content"] += content
        elif content:
            translated.append({"role": role, "content": content})
    if not translated:
        raise Untranslatable("messages", "Claude needs at least one message of a user")
    for message in translated:
        content = message["content"]
        if len(content) == 1 and content[0].keys() == {"type", "text"}:
            message["content"] = content[0]["text"]
    return system, translated


def _assistant(message: Mapping[str, Any], path: str) -> list[Json]:
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise Untranslatable(f"{path}.{name}", "Claude has no such part of a message")
    content = message.get("content")
    blocks = [] if content is None else _texts(content, f"{path}.content")
    if message.get("refusal") is not None:
        blocks += _text_block(fields.text(message["refusal"], f"{path}.refusal"), {})
    for call_path, call in fields.items(message.get("tool_calls") or [], f"{path}.tool_calls"):
        blocks.append(_tool_use(fields.mapping(call, call_path), call_path))
    return blocks


def _tool_use(call: Mapping[str, Any], path: str) -> Json:
    if call.get("type", "function") != "function":
        raise fields.unknown(call.get("type"), f"{path}.type", "function")
    function = fields.mapping(call.get("function"), f"{path}.function")
    arguments = fields.text(function.get("arguments", ""), f"{path}.function.arguments")
    try:
        # A call without arguments may say nothing at all.
        parsed = orjson.loads(arguments) if arguments.strip() else {}
    except orjson.JSONDecodeError as error:
        raise Untranslatable(f"{path}.function.arguments", f"is not JSON: {error}") from None
    return {
        "type": "tool_use",
        "id": fields.text(call.get("id"), f"{path}.id"),
        "name": fields.text(function.get("name"), f"{path}.function.name"),
        "input": fields.mapping(parsed, f"{path}.function.arguments"),
    }


def _tool_result(message: Mapping[str, Any], path: str) -> Json:
    result: Json = {
        "type": "tool_result",
        "tool_use_id": fields.text(message.get("tool_call_id"), f"{path}.tool_call_id"),
    }
    content = message.get("content")
    if isinstance(content, str):
        result["content"] = content
    elif content is not None:
        result["content"] = _texts(content, f"{path}.content")
    return result


def _texts(content: object, path: str) -> list[Json]:
    """The text blocks of a content that may have nothing else."""
    if isinstance(content, str):
        return _text_block(content, {})
    blocks = []
    for part_path, part in fields.items(content, path):
        part = fields.mapping(part, part_path)
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise fields.unknown(kind, f"{part_path}.type", "text")
        blocks += _text_block(fields.text(part.get(kind), f"{part_path}.{kind}"), part)
    return blocks


def _parts(content: object, path: str) -> list[Json]:
    if isinstance(content, str):
        return _text_block(content, {})
    blocks = []
    for part_path, part in fields.items(content, path):
        part = fields.mapping(part, part_path)
        kind = part.get("type")
        if kind == "text":
            blocks += _text_block(fields.text(part.get("text"), f"{part_path}.text"), part)
        elif kind == "image_url":
            image = fields.mapping(part.get("image_url"), f"{part_path}.image_url")
            url = fields.text(image.get("url"), f"{part_path}.image_url.url")
            source = _source(url, f"{part_path}.image_url.url")
            blocks.append(with_cache_control({"type": "image", "source": source}, part))
        else:
            raise fields.unknown(kind, f"{part_path}.type", "text, image_url")
    return blocks


def _text_block(text: str, part: Mapping[str, Any]) -> list[Json]:
    # Claude refuses empty blocks; without one the message says the same.
    return [with_cache_control({"type": "text", "text": text}, part)] if text else []


def _source(url: str, path: str) -> Json:
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    match = _DATA_URI.match(url)
    if match is None:
        raise Untranslatable(path, "must be an http(s) URL or a data: URI in base64")
    media_type = match[1].lower()
    if media_type not in facts.load().image_types:
        raise fields.unknown(media_type, path, ", ".join(sorted(facts.load().image_types)))
    return {"type": "base64", "media_type": media_type, "data": url[match.end() :]}


def with_cache_control(block: Json, part: Mapping[str, Any]) -> Json:
    """The block, with the `cache_control` of what it is made of."""
    if isinstance(part.get("cache_control"), dict):
        block["cache_control"] = part["cache_control"]
    return block

"""The messages of `POST /v1/messages` as those of `POST /v1/chat/completions`.

Decisions that the two formats leave open:
- Text blocks that follow each other become one text, as many services take no lists: an assistant's without anything
  between them, as one answer was cut into them; others with a line end.
- Tool results become messages of their own before the rest of their message. OpenAI has no `is_error`: such a result
  begins with "Error: ".
- Thinking of earlier answers is left out (gateway.yaml: dropped_blocks); so is a message that has nothing else.
- Pictures in tool results and documents are refused: OpenAI's format has no place for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from inference_service.gateway.translation import facts, fields
from inference_service.gateway.translation.fields import Json, Untranslatable


def to_openai(system: object, messages: object) -> list[Json]:
    """The system message, if there is one, and the others.

    Raises:
        Untranslatable: something in them that OpenAI's format has nothing for, or that Anthropic's API does not take.
    """
    translated: list[Json] = []
    if system is not None:
        translated += _system(system, "system")
    for path, message in fields.items(messages, "messages"):
        message = fields.mapping(message, path)
        role, content = message.get("role"), message.get("content")
        if role == "user":
            translated += _user(content, f"{path}.content")
        elif role == "assistant":
            translated += _assistant(content, f"{path}.content")
        elif role == "system":
            translated += _system(content, f"{path}.content")
        else:
            raise fields.unknown(role, f"{path}.role", "user, assistant, system")
    if not translated:
        raise Untranslatable("messages", "there must be at least one")
    return translated


def _system(content: object, path: str) -> list[Json]:
    text = _text_alone(content, path)
    return [{"role": "system", "content": text}] if text else []


def _user(content: object, path: str) -> list[Json]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Json] = []
    parts: list[Json] = []
    for block_path, block in fields.items(content, path):
        block = fields.mapping(block, block_path)
        kind = block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": fields.text(block.get("text"), f"{block_path}.text")})
        elif kind == "image":
            url = _image_url(fields.mapping(block.get("source"), f"{block_path}.source"), f"{block_path}.source")
            parts.append({"type": "image_url", "image_url": {"url": url}})
        elif kind == "tool_result":
            results.append(_tool_result(block, block_path))
        else:
            raise fields.unknown(kind, f"{block_path}.type", "text, image, tool_result")
    if not parts:
        return results
    if all(part["type"] == "text" for part in parts):
        return [*results, {"role": "user", "content": "\n".join(part["text"] for part in parts)}]
    return [*results, {"role": "user", "content": parts}]


def _assistant(content: object, path: str) -> list[Json]:
    if isinstance(content, str):
        return [{"role": "assistant", "content": content}]
    dropped = facts.load().dropped_blocks
    texts: list[str] = []
    calls: list[Json] = []
    for block_path, block in fields.items(content, path):
        block = fields.mapping(block, block_path)
        kind = block.get("type")
        if kind == "text":
            texts.append(fields.text(block.get("text"), f"{block_path}.text"))
        elif kind == "tool_use":
            calls.append(_tool_call(block, block_path))
        elif kind not in dropped:
            raise fields.unknown(kind, f"{block_path}.type", f"text, tool_use, {', '.join(sorted(dropped))}")
    if not texts and not calls:
        return []
    message: Json = {"role": "assistant", "content": "".join(texts) if texts else None}
    if calls:
        message["tool_calls"] = calls
    return [message]


def _tool_call(block: Mapping[str, Any], path: str) -> Json:
    arguments = fields.mapping(block.get("input"), f"{path}.input")
    return {
        "id": fields.text(block.get("id"), f"{path}.id"),
        "type": "function",
        "function": {
            "name": fields.text(block.get("name"), f"{path}.name"),
            "arguments": orjson.dumps(arguments).decode(),
        },
    }


def _tool_result(block: Mapping[str, Any], path: str) -> Json:
    content = block.get("content")
    text = "" if content is None else _text_alone(content, f"{path}.content")
    if fields.true_or_false(block.get("is_error") or False, f"{path}.is_error"):
        text = f"Error: {text}"
    return {
        "role": "tool",
        "tool_call_id": fields.text(block.get("tool_use_id"), f"{path}.tool_use_id"),
        "content": text,
    }


def _text_alone(content: object, path: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for block_path, block in fields.items(content, path):
        block = fields.mapping(block, block_path)
        if block.get("type") != "text":
            raise fields.unknown(block.get("type"), f"{block_path}.type", "text")
        texts.append(fields.text(block.get("text"), f"{block_path}.text"))
    return "\n".join(texts)


def _image_url(source: Mapping[str, Any], path: str) -> str:
    kind = source.get("type")
    if kind == "url":
        url = fields.text(source.get("url"), f"{path}.url")
        if not url.startswith(("https://", "http://")):
            raise Untranslatable(f"{path}.url", "must be an http(s) URL")
        return url
    if kind != "base64":
        raise fields.unknown(kind, f"{path}.type", "base64, url")
    media_type = fields.text(source.get("media_type"), f"{path}.media_type")
    if media_type not in facts.load().image_types:
        raise fields.unknown(media_type, f"{path}.media_type", ", ".join(sorted(facts.load().image_types)))
    return f"data:{media_type};base64,{fields.text(source.get('data'), f'{path}.data')}"

"""From the body of a chat completion to what llama.cpp is asked: the texts of the messages and the sampling values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from inference_service import references
from inference_service.microservices.smollm2.model import NETWORK_ARCH, RequestError
from inference_service.references import SamplingField

_ROLES = ("system", "user", "assistant")
# Those of the TAO servers (measured), so that the same body without sampling values means the same here.
_DEFAULTS = {"max_tokens": 1024, "temperature": 0.7}


def translate(body: Any) -> dict[str, Any]:
    """The request for llama.cpp. Unlike the TAO servers this one reads every message, and every text item of one.

    Raises:
        RequestError: no messages, an unknown role or content, media, or a sampling field that it does not take.
    """
    if not isinstance(body, Mapping):
        raise RequestError("the body must be a JSON object")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message")
    request = {"messages": [_message(message) for message in messages], **_DEFAULTS, **_sampling(body)}
    if all(message["role"] != "user" for message in request["messages"]):
        raise RequestError("messages must hold a message of the role user")
    return request


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise RequestError(f"each message must be an object whose role is one of {', '.join(_ROLES)}")
    text = _text(message.get("content"))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the text is not Unicode: {error.reason}") from error
    return {"role": message["role"], "content": text}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError("content must be a text or a list of content items")
    return "\n".join(_text_of_item(item) for item in content)


def _text_of_item(item: Any) -> str:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind != "text":
        raise RequestError(f"this model takes text alone, no content item of type {kind!r}")
    if not isinstance(item.get("text"), str):
        raise RequestError("a text item must have its text as a string")
    return str(item["text"])


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    refs = references.load()
    fields = refs.arch(NETWORK_ARCH).request.fields
    unknown = sorted(name for name in refs.wire.all_fields - fields.keys() if body.get(name) is not None)
    if unknown:
        raise RequestError(f"this model does not take {', '.join(unknown)}; it takes {', '.join(fields)}")
    values = {name: body[name] for name in fields if body.get(name) is not None}
    for name, value in values.items():
        _check(fields[name], value)
    return values


def _check(field: SamplingField, value: Any) -> None:
    if not _TYPES[field.type](value):
        raise RequestError(f"{field.name} must be of type {field.type}, not {value!r}")
    if field.minimum is not None and value < field.minimum:
        raise RequestError(f"{field.name} must be at least {field.minimum:g}, not {value!r}")
    if field.exclusive_minimum is not None and value <= field.exclusive_minimum:
        raise RequestError(f"{field.name} must be above {field.exclusive_minimum:g}, not {value!r}")
    if field.maximum is not None and value > field.maximum:
        raise RequestError(f"{field.name} must be at most {field.maximum:g}, not {value!r}")


def _is_string_list(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


_TYPES: dict[str, Callable[[Any], bool]] = {
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "string_list": _is_string_list,
}

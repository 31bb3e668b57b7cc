"""The chat completion as it is asked for and answered: from the user's words to the body, from the answer's bytes back.

The services read one user message, take every medium in it, and of several texts only the last (measured), so the texts
are joined into one that comes after the media.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_service import secrets
from inference_service.body import InlinedFile
from inference_service.errors import BadInput, ToolError
from inference_service.media import MediaItem
from inference_service.references import Arch

STANDARD_INPUT = "-"
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Completion:
    """An answer. `usage` is the service's own count of tokens, None where it gives none (TAO servers do not).

    `alternatives` are the further answers where more than one was asked for (`n`).
    """

    content: str
    finish_reason: str | None
    usage: Mapping[str, Any] | None
    alternatives: tuple[str, ...] = ()


def prompt_of(texts: Sequence[str]) -> str:
    """One prompt of all the texts, `-` standing for standard input.

    Raises:
        BadInput: there is nothing in it, it is not valid Unicode, or standard input is asked for twice.
    """
    if texts.count(STANDARD_INPUT) > 1:
        raise BadInput("standard_input_twice", "--prompt - is given more than once", "standard input can be read once")
    prompt = "\n\n".join(_standard_input() if text == STANDARD_INPUT else text for text in texts)
    if not prompt.strip():
        raise BadInput("empty_prompt", "the prompt is empty", "say what you want with --prompt TEXT")
    return _unicode(prompt, "--prompt")


def request_body(
    arch: Arch,
    prompt: str,
    system: str | None,
    media: Sequence[MediaItem],
    sampling: Mapping[str, Any],
    stream: bool,
) -> dict[str, Any]:
    """The body of the request (seed 6.2), JSON but for the local files in it (`body.InlinedFile`).

    Raises:
        BadInput: the system prompt is not valid Unicode.
    """
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": _unicode(system, "--system")})
    content = [*map(_media_content, media), {"type": "text", "text": prompt}]
    messages.append({"role": "user", "content": content})
    body: dict[str, Any] = {"model": arch.network_arch, "messages": messages, **sampling}
    if stream:
        # Without the second a server need not count the tokens of a streamed answer.
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def refuse_unsupported(arch: Arch, system: str | None, stream: bool) -> None:
    """Refuse (BadInput) a system prompt or a streamed answer where the arch has none."""
    if system is not None and not arch.request.system_prompt:
        raise BadInput("no_system_prompt", f"{arch.network_arch} takes no system prompt", "say it in --prompt")
    if stream and not arch.request.streaming:
        raise BadInput("no_streaming", f"{arch.network_arch} does not stream its answers", "leave out --stream")


def parse_completion(data: bytes) -> Completion:
    """The completion in the body of an answer with status 200.

    Raises:
        ToolError: it is not what the contract says; the message has what is wrong and the first bytes.
    """
    document = _json(data)
    try:
        choices = document["choices"]
        first, *others = (_text(choice["message"]["content"]) for choice in choices)
        finish_reason = choices[0].get("finish_reason")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise invalid_answer("it has no text in choices[0].message.content", data) from None
    if finish_reason is not None and not isinstance(finish_reason, str):
        raise invalid_answer("its finish_reason is no text", data)
    return Completion(first, finish_reason, usage_of(document, data), tuple(others))


def usage_of(document: Mapping[str, Any], data: bytes) -> Mapping[str, Any] | None:
    """The `usage` block of an answer, None where there is none.

    Raises:
        ToolError: a token count in it is not a count.
    """
    usage = document.get("usage")
    if usage is None:
        return None
    if not isinstance(usage, Mapping) or not all(
        _is_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    ):
        raise invalid_answer("its usage is no count of tokens", data)
    return usage


def cached_tokens(usage: Mapping[str, Any]) -> int | None:
    """How many of the prompt's tokens came from a cache, where the service says so."""
    details = usage.get("prompt_tokens_details")
    count = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return count if isinstance(count, int) else None


def invalid_answer(why: str, data: bytes) -> ToolError:
    """The error for an answer that breaks the contract, with its first bytes."""
    return ToolError(
        "invalid_answer",
        f"the service's answer is no chat completion: {why}; it begins: {first_bytes(data)}",
        "check that the url is the service's own; see what it says: service_logs.py",
    )


def first_bytes(data: bytes) -> str:
    """The beginning of any body, fit to be shown: one line, without secrets."""
    # Redacted before it is cut: half a secret would not be recognized.
    text = " ".join(secrets.redact(data[:4096].decode("utf-8", "replace")).split())
    printable = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return repr(printable[:_SHOWN_CHARACTERS]) if printable else "(empty)"


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            "not_unicode", f"standard input is not UTF-8: {error}", "convert it, for example by iconv"
        ) from None


def _unicode(text: str, option: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("not_unicode", f"{option} is not valid UTF-8", "convert it, for example by iconv") from None
    return text


def _media_content(item: MediaItem) -> dict[str, Any]:
    url: str | InlinedFile | None = item.url
    if item.path is not None:
        url = InlinedFile(item.path, str(item.mime), int(item.bytes or 0))
    kind = f"{item.kind}_url"
    return {"type": kind, kind: {"url": url}}


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise invalid_answer("it is not JSON", data) from None
    if not isinstance(document, Mapping):
        raise invalid_answer("it is not a JSON object", data)
    return document


def _refuse_constant(name: str) -> None:
    # Python would take NaN and Infinity, which are not JSON and which we could not print as JSON.
    raise ValueError(name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    # JSON can carry half a surrogate pair, which no file or terminal can.
    return value.encode("utf-8", "replace").decode("utf-8") if not value.isascii() else value


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)

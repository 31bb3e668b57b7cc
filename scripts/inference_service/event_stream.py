"""Streamed answers: server-sent events (WHATWG HTML, 9.2.6) that carry chat.completion.chunk objects (OpenAI's API)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from inference_service.chat import Completion, first_bytes, invalid_answer, usage_of
from inference_service.errors import ToolError

_DONE = "[DONE]"


def events(pieces: Iterable[bytes]) -> Iterator[str]:
    """The data of each event. `pieces` may be cut anywhere, in the middle of a character or of a line end too.

    An event that the stream's end cuts off before its blank line is given as well: some servers leave the last one out.
    """
    data: list[str] = []
    for line in _lines(pieces):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line == "data" or line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
    if data:
        yield "\n".join(data)


def collect(pieces: Iterable[bytes], on_text: Callable[[str], None]) -> Completion:
    """The whole completion of a streamed answer; `on_text` gets each part of its text as it arrives.

    Raises:
        ToolError: the service reports an error in the middle, sends what is no chunk, or stops before the end.
    """
    texts: list[str] = []
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    done = False
    for event in events(pieces):
        if event == _DONE:
            done = True
            break
        chunk = _chunk(event)
        text, finished = _choice(chunk, event)
        if text:
            texts.append(text)
            on_text(text)
        finish_reason = finished or finish_reason
        usage = usage_of(chunk, event.encode()) or usage
    if not (done or finish_reason):
        raise ToolError(
            "answer_cut_off",
            f"the streamed answer stopped before its end, after {sum(map(len, texts))} characters",
            "send it again; see what happened: service_logs.py",
        )
    return Completion("".join(texts), finish_reason, usage)


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """The lines, whichever of \\n, \\r\\n and \\r ends them."""
    pending = b""
    first = True
    for piece in pieces:
        pending += piece
        # A \r at the very end may be half of a \r\n: it waits for the next piece.
        held = pending[-1:] if pending.endswith(b"\r") else b""
        *whole, pending = pending[: len(pending) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        pending += held
        for line in whole:
            yield _decoded(line, first)
            first = False
    for line in pending.removesuffix(b"\r").split(b"\n"):
        yield _decoded(line, first)
        first = False


def _decoded(line: bytes, first: bool) -> str:
    text = line.decode("utf-8", "replace")
    return text.removeprefix("\ufeff") if first else text


def _chunk(event: str) -> Mapping[str, Any]:
    try:
        chunk = json.loads(event)
    except (ValueError, RecursionError):
        raise invalid_answer("an event of its stream is not JSON", event.encode()) from None
    if not isinstance(chunk, Mapping):
        raise invalid_answer("an event of its stream is not a JSON object", event.encode())
    error = chunk.get("error")
    if error:
        message = error.get("message") if isinstance(error, Mapping) else None
        raise ToolError(
            "failed_while_streaming",
            f"the service reported an error in the middle of its answer: {message or first_bytes(event.encode())}",
            "see what happened: service_logs.py",
        )
    return chunk


def _choice(chunk: Mapping[str, Any], event: str) -> tuple[str, str | None]:
    """The text and the finish reason of the chunk's first choice; a chunk that carries only usage has none."""
    try:
        choices = [choice for choice in chunk.get("choices") or () if choice.get("index", 0) == 0]
        choice: Mapping[str, Any] = choices[0] if choices else {}
        text, finish_reason = (choice.get("delta") or {}).get("content") or "", choice.get("finish_reason")
    except (AttributeError, TypeError):
        raise invalid_answer("an event of its stream is no chat.completion.chunk", event.encode()) from None
    if not isinstance(text, str) or not isinstance(finish_reason, str | None):
        raise invalid_answer("an event of its stream is no chat.completion.chunk", event.encode())
    return text.encode("utf-8", "replace").decode("utf-8"), finish_reason

"""Reads along in a stream that is passed on as it is: usage, finish, errors, how much was produced.

Almost every event of a stream is a piece of text in the same envelope: the bytes before the text and those after it are
the same each time. So the first such event is parsed, its envelope is remembered, and what follows in the same envelope
is recognised by two comparisons; every other event is parsed. Text cannot forge an envelope, as its quotes are escaped.
Events may be cut anywhere; both wire formats put each event's JSON on one `data:` line. A line is sent on when it is
whole, so that a stream that is cut can still be ended by an event that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from inference_service import metering
from inference_service.metering import Usage

Shape = Literal["openai", "anthropic"]

_LONGEST_LINE = 64 * 1024
"""Bytes. A longer line carries a text or a picture; nothing that is looked for here."""
_TEXT = re.compile(rb'"(?:text|thinking|partial_json|content|reasoning_content|reasoning|arguments|refusal)"\s*:\s*"')
_NONE: Mapping[str, Any] = {}


class StreamReader:
    """Who reads a stream on its way to the client: a tap, or one that translates it.

    `finished`: the stream told its own end. `error_type`: the type of an error event inside it; `error` if it names
    none, `bad_answer` for what is no event at all, `cut` where the reader itself told the client of a cut (see `end`).
    `finish_reason`: in the upstream's words. `first_token`: something of the answer has come. `produced_bytes` of UTF-8
    text (also thinking and tool arguments) came in `deltas` events.
    """

    def __init__(self) -> None:
        self.finished = False
        self.first_token = False
        self.error_type: str | None = None
        self.finish_reason: str | None = None
        self.produced_bytes = 0
        self.deltas = 0

    def feed(self, piece: bytes) -> bytes:
        """Read the next bytes of the stream; what is to be sent on for them."""
        raise NotImplementedError

    def end(self) -> bytes:
        """The stream's bytes have ended; what is still to be sent on. A stream that is not `finished` then was cut.

        If the reader translates, what it gives for such a stream ends with the event that says so. If it passes on,
        the event is the caller's to send: it can follow at once.
        """
        raise NotImplementedError

    @property
    def usage(self) -> Usage | None:
        """What the stream reported so far. Only of a finished stream is it all."""
        raise NotImplementedError

    def estimate(self, body_bytes: int) -> Usage:
        """The usage if the stream ends here; `body_bytes` are those of the request's body. See metering.estimate."""
        return metering.estimate(
            self.usage, body_bytes=body_bytes, produced_bytes=self.produced_bytes, deltas=self.deltas
        )


class _Tap(StreamReader):
    """What the taps of both shapes have in common."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: Mapping[str, Any] | None = None
        self._rest = b""
        self._passing_long_line = False
        self._before_text = b""
        self._to_text = 0
        self._after_text = b""
        self._from_text = b""
        self._event_line = -1
        self._in_event = False
        """Whether the last line is part of an event that a blank line has not ended yet."""
        self._told_end = False
        self._told_error: str | None = None

    def feed(self, piece: bytes) -> bytes:
        """Read the next bytes of the stream; what is to be sent on, usually the same object."""
        if self._to_text and not self._rest and piece.endswith(self._from_text) and piece.startswith(self._before_text):
            text = piece[self._to_text : -len(self._from_text)]
            # Without a quote in it, it is one event's text; without a backslash, as long as it is in the JSON.
            if b'"' not in text and b"\\" not in text:
                self.produced_bytes += len(text)
                self.deltas += 1
                return piece
            if b"\n" not in text:  # Several events otherwise.
                try:
                    self.produced_bytes += len(orjson.loads(b'"%b"' % text).encode())
                except orjson.JSONDecodeError:  # More than a text.
                    return self._feed(piece)
                self.deltas += 1
                return piece
        return self._feed(piece)

    def _feed(self, piece: bytes) -> bytes:
        data = self._rest + piece if self._rest else piece
        end = self._read(data)
        if end == len(data):  # Almost always, as servers send whole events.
            self._rest = b""
            return data
        self._rest = self._kept(data[end:])
        return data[:end] if self._rest else data

    def end(self) -> bytes:
        last, self._rest = self._rest, b""
        in_event = self._in_event
        if last:
            self._line(last, 0, len(last))
        self._end_event()
        if self.finished or self.error_type:
            return last
        return b"\n" if in_event else b""  # Half a line is nothing; half an event must not go into the next one.

    def _end_event(self) -> None:
        # Only now, as the client reads no event before its blank line.
        self.finished = self.finished or self._told_end
        self.error_type = self.error_type or self._told_error

    def _document(self, document: Mapping[str, Any]) -> str | None:
        """Read one event; returns its text if it is nothing but a piece of text."""
        raise NotImplementedError

    def _read(self, data: bytes) -> int:
        at, size, before = 0, len(data), self._before_text
        self._event_line = -1
        while at < size:
            if before and data.startswith(before, at):
                begin = at + self._to_text
                end = data.find(b'"}', begin)
                if end > 0:
                    stop = data.find(b"\n", end)
                    text = data[begin:end]
                    # Anthropic pads its events with spaces, so that their sizes do not give the text away.
                    if (
                        stop > 0
                        and data[end:stop].translate(None, b" \r") == self._after_text
                        and b"\\" not in text
                        and b'"' not in text
                    ):
                        self.produced_bytes += end - begin
                        self.deltas += 1
                        self._in_event = not data.startswith(b"\n", stop + 1)
                        at = stop + 1 if self._in_event else stop + 2
                        continue
            stop = data.find(b"\n", at)
            if stop < 0:
                return at
            self._line(data, at, stop)
            before = self._before_text
            at = stop + 1
        return size

    def _kept(self, rest: bytes) -> bytes:
        if len(rest) > _LONGEST_LINE:
            self._passing_long_line = True
        return b"" if self._passing_long_line else rest

    def _line(self, data: bytes, start: int, stop: int) -> None:
        if self._passing_long_line:
            self._passing_long_line = False
            self._in_event = True
            return
        if stop - start <= 1 and not data[start:stop].strip():
            self._in_event = False
            self._event_line = -1
            self._end_event()
            return
        self._in_event = True
        if data.startswith(b"event:", start):
            self._event_line = start
            return
        event_line, self._event_line = self._event_line, -1
        if not data.startswith(b"data:", start):
            return
        payload = data[start + 5 : stop].strip()
        if payload == b"[DONE]":
            self._told_end = True
            return
        try:
            document = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return
        if not isinstance(document, dict):
            return
        text = self._document(document)
        if text is not None:
            self.first_token = True
            self.deltas += 1
            self.produced_bytes += len(text.encode())
            self._remember(data, event_line, start, stop, text)

    def _remember(self, data: bytes, event: int, start: int, stop: int, text: str) -> None:
        before = _TEXT.search(data, start, stop)
        if before is None:
            return
        end = data.find(b'"}', before.end(), stop)
        # Only if the text is all there is between the two: what differs in another field must not be taken for it.
        if end > 0 and data[before.end() : end] == text.encode():
            named = event >= 0 and data.find(b"\n", event) + 1 == start
            self._before_text = data[event if named else start : before.end()]
            self._to_text = len(self._before_text)
            self._after_text = data[end:stop].translate(None, b" \r")
            self._from_text = data[end:stop] + (b"\n\r\n" if data.endswith(b"\r", end, stop) else b"\n\n")


class AnthropicTap(_Tap):
    """Reads along in a stream of `POST /v1/messages`."""

    @property
    def usage(self) -> Usage | None:
        """What the stream reported so far: the input from its start on, the output at its end."""
        return metering.from_anthropic(self._usage) if self._usage else None

    def _document(self, document: Mapping[str, Any]) -> str | None:
        kind = document.get("type")
        if kind == "content_block_delta":
            delta = _mapping(document.get("delta"))
            return _text(delta.get("text") or delta.get("thinking") or delta.get("partial_json"))
        if kind == "message_start":
            self._merge(_mapping(document.get("message")).get("usage"))
        elif kind == "message_delta":
            self._merge(document.get("usage"))
            self.finish_reason = _text(_mapping(document.get("delta")).get("stop_reason")) or self.finish_reason
        elif kind == "message_stop":
            self._told_end = True
        elif kind == "error":
            self._told_error = error_type_of(document)
        return None

    def _merge(self, usage: object) -> None:
        if isinstance(usage, dict):
            self._usage = metering.merge(self._usage, usage)


class OpenAITap(_Tap):
    """Reads along in a stream of `POST /v1/chat/completions`.

    `strip_usage`: the client did not ask for the event that has the usage alone (`stream_options.include_usage`), the
    gateway did: it is taken out.
    """

    def __init__(self, strip_usage: bool = False) -> None:
        super().__init__()
        self._strip_usage = strip_usage
        self._usage_alone = False
        self._drop_blank_line = False
        self._drops: list[tuple[int, int]] = []

    @property
    def usage(self) -> Usage | None:
        """What the stream reported so far."""
        return metering.from_openai(self._usage) if self._usage else None

    def _feed(self, piece: bytes) -> bytes:
        data = super()._feed(piece)
        return self._without_drops(data) if self._drops else data

    def end(self) -> bytes:
        data = super().end()
        return self._without_drops(data) if self._drops else data

    def _without_drops(self, data: bytes) -> bytes:
        kept, at = [], 0
        for start, stop in self._drops:
            kept.append(data[at:start])
            at = stop
        self._drops = []
        return b"".join([*kept, data[at:]])

    def _line(self, data: bytes, start: int, stop: int) -> None:
        # llama.cpp's server names its errors by the field.
        if not self._passing_long_line and data.startswith(b"error:", start):
            self._told_error = _error_type_in(data[start + 6 : stop])
        super()._line(data, start, stop)
        if self._usage_alone or (self._drop_blank_line and not data[start:stop].strip()):
            self._drops.append((start, stop + 1))
        self._drop_blank_line, self._usage_alone = self._usage_alone, False

    def _document(self, document: Mapping[str, Any]) -> str | None:
        choices = document.get("choices")
        usage = document.get("usage")
        if isinstance(usage, dict):
            self._usage = metering.merge(self._usage, usage)
            self._usage_alone = self._strip_usage and not choices
        if document.get("error") or document.get("object") == "error":
            self._told_error = error_type_of(document)
        text: str | None = None
        for choice in choices if isinstance(choices, list) else ():
            choice = _mapping(choice)
            self.finish_reason = _text(choice.get("finish_reason")) or self.finish_reason
            produced = _produced(_mapping(choice.get("delta")))
            text = produced if text is None else text + (produced or "")
        return text or None


def usage_of_answer(shape: Shape, body: bytes) -> tuple[Usage | None, str | None, str | None]:
    """Of an answer that was not streamed: its usage, its finish_reason (or stop_reason), its error's type."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None, None, None
    if not isinstance(answer, dict):
        return None, None, None
    failed = answer.get("error") or answer.get("object") == "error" or answer.get("type") == "error"
    error = error_type_of(answer) if failed else None
    usage = answer.get("usage")
    if shape == "anthropic":
        counted = metering.from_anthropic(usage) if isinstance(usage, dict) else None
        return counted, _text(answer.get("stop_reason")), error
    counted = metering.from_openai(usage) if isinstance(usage, dict) else None
    choices = answer.get("choices")
    first = _mapping(choices[0]) if isinstance(choices, list) and choices else _NONE
    return counted, _text(first.get("finish_reason")), error


def error_type_of(document: Mapping[str, Any]) -> str:
    """The type of the error in a body or event of either shape; `error` if it names none."""
    error = document.get("error")
    if isinstance(error, dict):
        return _text(error.get("type")) or _text(error.get("code")) or "error"
    if isinstance(error, str):  # FastAPI services answer {"error": "words"}: words are no type.
        return "error"
    return _text(document.get("type")) or "error"


def _error_type_in(body: bytes) -> str:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "error"
    return error_type_of(document) if isinstance(document, dict) else "error"


def _produced(delta: Mapping[str, Any]) -> str | None:
    pieces = [delta.get(name) for name in ("content", "reasoning_content", "reasoning", "refusal")]
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = _mapping(_mapping(call).get("function"))
        pieces += [function.get("name"), function.get("arguments")]
    return "".join(piece for piece in pieces if isinstance(piece, str)) or None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NONE


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None

"""What goes wrong with an answer, as a test asks for it: in the double's queue, or in the prompt itself.

In a prompt: "Say hello [[status=429; retry_after=1; times=1]]". `times` counts by the whole directive, so that a
request that is sent again meets what is left of it; give it a `key` of its own to tell requests apart.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

_DIRECTIVE = re.compile(rb"\[\[([a-z_]+=[^\]]*)\]\]")


@dataclass(frozen=True)
class Fault:
    """What becomes of one answer. Times are in seconds; events are those of a stream after its first.

    `status`: an error answer with this status (and `retry_after`, `error_type` where given). `first_byte`: so long
    nothing comes. `token_delay`: between two events. `cut_after`: it closes after so many events, unstreamed in
    the middle of the body. `error_after`: an error event after so many events. `reset`: RST before any byte. `hang`:
    it never answers. `garbage`: `http` (what comes is no HTTP), `body` (no JSON), `event` (an event that is no JSON).
    `text`, `words`: the answer, or a made-up one of so many words. `thinking`: what it thinks first. `cache_read`,
    `cache_write_5m`, `cache_write_1h`: tokens of the prompt that the cache had or took. `usage`: False leaves it out.
    """

    status: int | None = None
    retry_after: str | None = None
    error_type: str | None = None
    first_byte: float = 0.0
    token_delay: float | None = None
    cut_after: int | None = None
    error_after: int | None = None
    reset: bool = False
    hang: bool = False
    garbage: str | None = None
    text: str | None = None
    words: int | None = None
    thinking: str | None = None
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    usage: bool = True
    times: int | None = None
    key: str = ""


NONE = Fault()
_TYPES = {field.name: str(field.type) for field in dataclasses.fields(Fault)}


def asked_for(body: bytes) -> tuple[Fault, bytes] | None:
    """The fault that a request's body asks for, with the text of the directive; None where there is none."""
    found = _DIRECTIVE.search(body)
    if found is None:
        return None
    # It stands inside a JSON string: \" and \\ are what the writer of the prompt wrote as " and \.
    text = json.loads(b'"' + found[1] + b'"')
    values = dict(part.strip().split("=", 1) for part in text.split(";") if part.strip())
    return Fault(**{name: _value(_TYPES[name], value) for name, value in values.items()}), found[1]


def from_json(document: dict[str, Any]) -> Fault:
    """A fault as the control endpoint takes it."""
    return Fault(**document)


def _value(kind: str, text: str) -> Any:
    if kind.startswith("int"):
        return int(text)
    if kind.startswith("float"):
        return float(text)
    return text not in ("0", "false", "no") if kind == "bool" else text

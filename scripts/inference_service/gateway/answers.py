"""A request to one of the small endpoints, and its answer; those that carry models' traffic have no use for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_service.callers.caller import Caller


@dataclass(frozen=True)
class Request:
    """`query` is the undecoded query string; names of `headers` are lower-case, and of several the last counts."""

    method: str
    path: str
    query: str
    headers: Mapping[bytes, bytes]
    caller: Caller | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer. Its length is said by who sends it."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

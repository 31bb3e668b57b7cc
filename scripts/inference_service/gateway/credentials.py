"""Where a request carries its API key: as OpenAI's SDK sends it, and as Anthropic's does."""

from __future__ import annotations

from collections.abc import Mapping


def key_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The API key of a request: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        return authorization[7:].strip() if authorization[:7].lower() == b"bearer " else None
    return headers.get(b"x-api-key")

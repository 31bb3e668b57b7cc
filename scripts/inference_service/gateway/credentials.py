"""Where a request carries its API key, and whether it is one of those that the gateway got by its environment."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping


def key_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The API key of a request: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        return authorization[7:].strip() if authorization[:7].lower() == b"bearer " else None
    return headers.get(b"x-api-key")


def digest(key: str) -> bytes | None:
    """What is kept of a key of the environment to compare others with; None where there is no such key."""
    return hashlib.sha256(key.encode()).digest() if key else None


def matches(key: bytes, kept: bytes | None) -> bool:
    """Whether this is the key that was kept, in a time that tells nothing of it."""
    return kept is not None and hmac.compare_digest(hashlib.sha256(key).digest(), kept)

"""Who a key belongs to, from memory: a copy of the callers in the database that is renewed when they change.

Unknown key and wrong secret take the same path: the key is hashed and compared, with nobody's hash if need be. No key
is kept as it was sent.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from inference_service.callers import keys, store
from inference_service.callers.caller import Caller
from inference_service.sql import Database

_ID = keys.ID
_LENGTH = keys.LENGTH
_Entry = tuple[bytes, Caller | None, float | None]


@dataclass(frozen=True)
class Copy:
    """The callers that may come in, at one version of the database's."""

    version: int
    by_id: dict[str, Caller]
    entries: dict[bytes, _Entry]


def load(database: Database, known_version: int) -> Copy | None:
    """A new copy if the callers have changed since `known_version`. Does I/O: for a thread of its own."""
    with database.snapshot() as cursor:
        version = store.version(cursor)
        if version == known_version:
            return None
        callers = [stored for stored in store.read(cursor) if not stored.disabled]
    entries: dict[bytes, _Entry] = {
        key.key_id.encode(): (bytes.fromhex(key.digest), stored.caller, key.expires_at)
        for stored in callers
        for key in stored.keys
    }
    return Copy(version, {stored.caller.id: stored.caller for stored in callers}, entries)


class Directory:
    """The copy that requests are looked up in."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # No key has this hash.
        self._nobody: _Entry = (secrets.token_bytes(32), None, None)
        self.copy = Copy(-1, {}, {})
        self._entries = self.copy.entries

    def replace(self, copy: Copy) -> None:
        """Look up in this copy from now on."""
        self.copy = copy
        self._entries = copy.entries

    def authenticate(self, api_key: bytes) -> Caller | None:
        """The caller whose key this is. Takes a few microseconds, whatever the key."""
        if len(api_key) != _LENGTH:
            return None
        digest, caller, expires_at = self._entries.get(api_key[_ID], self._nobody)
        if not hmac.compare_digest(sha256(api_key).digest(), digest):
            return None
        if expires_at is not None and self._clock() >= expires_at:
            return None
        return caller

"""A caller's API key: `tao-<key id>-<secret>`. The id finds the caller, the secret proves it; only a hash is stored.

The secret has 256 random bits, so a plain SHA-256 of the key is enough: there is nothing to guess with a dictionary,
and a slow hash would cost each request what it is meant to cost an attacker.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from dataclasses import dataclass

PREFIX = "tao"
_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 8
_SECRET_LENGTH = 43  # letters and digits, 5.95 bits each: 256 bits

LENGTH = len(PREFIX) + 1 + _ID_LENGTH + 1 + _SECRET_LENGTH
ID = slice(len(PREFIX) + 1, len(PREFIX) + 1 + _ID_LENGTH)
"""Where the id is in a key of that length."""
_FORM = re.compile(rb"%s-[A-Za-z0-9]{%d}-[A-Za-z0-9]{%d}" % (PREFIX.encode(), _ID_LENGTH, _SECRET_LENGTH))


@dataclass(frozen=True)
class NewKey:
    """A key that was just made. `api_key` is shown once and kept nowhere; it is in no repr, so that no log gets it."""

    key_id: str
    api_key: str
    digest: str

    def __repr__(self) -> str:
        return f"NewKey({self.key_id!r})"


def make() -> NewKey:
    """A new key from the operating system's random numbers, and what of it is stored: its id and its hash (hex)."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
    api_key = f"{PREFIX}-{key_id}-{''.join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))}"
    return NewKey(key_id, api_key, digest(api_key.encode()).hex())


def digest(api_key: bytes) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(api_key).digest()


def is_well_formed(api_key: bytes) -> bool:
    """Whether this could be a key of ours at all. Says nothing that a stranger does not know already."""
    return _FORM.fullmatch(api_key) is not None

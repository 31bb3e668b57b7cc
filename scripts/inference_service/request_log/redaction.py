"""What callers wrote, without secrets: those of this process, and whatever looks like somebody's key."""

from __future__ import annotations

import functools
import re

from inference_service import secrets

# A caller may put a key into a prompt, a tag or a model's name that this process was never given.
_KEYS = re.compile(
    r"\bsk-(?=[-_A-Za-z]*[0-9])[-_A-Za-z0-9]{16,}|\btao-[A-Za-z0-9]{8}-[-_A-Za-z0-9]{12,}"
    r"|\b(?i:bearer)\s+[-._~+/A-Za-z0-9]{12,}=*"
)


def without_secrets(text: str) -> str:
    """The text with `[redacted]` in their place."""
    return secrets.redact(_KEYS.sub(secrets.REDACTED, text))


# Every request has such names: what holds no word as long as a key need not be looked at more closely.
_LONG_WORD = re.compile(r'[^\s",:{}]{12}')


def name_without_secrets(name: str) -> str:
    """The same of a short text, in a microsecond as a rule; a secret of fewer than 12 characters is not seen."""
    return _cleaned_name(name) if _LONG_WORD.search(name) else name


_cleaned_name = functools.lru_cache(maxsize=1024)(without_secrets)

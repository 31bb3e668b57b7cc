"""Text that a client chose (tags, model names, paths) without the secrets that it may hold by mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from inference_service import secrets

# Anthropic's and OpenAI's keys, and our own (callers/keys.py): nothing else looks like them.
_KEY_SHAPES = re.compile(r"\bsk-[A-Za-z0-9_-]{16,}|\btao-[A-Za-z0-9]{8}-[A-Za-z0-9_-]{16,}")


class Redactor:
    """Calling it with a text gives the text with secrets replaced by `[redacted]`.

    Secrets are what is shaped like an API key, the values of the secrets that this process knows by name
    (references/service.yaml), and `values`. Answers are remembered: the same few texts come again and again.
    """

    def __init__(self, environ: Mapping[str, str], values: Iterable[str] = ()) -> None:
        known = sorted({value for value in values if value}, key=len, reverse=True)

        @lru_cache(maxsize=2048)
        def clean(text: str) -> str:
            for value in known:
                text = text.replace(value, secrets.REDACTED)
            return _KEY_SHAPES.sub(secrets.REDACTED, secrets.redact(text, environ))

        self._clean = clean

    def __call__(self, text: str) -> str:
        return self._clean(text) if text else text

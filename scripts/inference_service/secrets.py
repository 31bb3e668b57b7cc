"""Secrets are named everywhere and read from the environment at the last moment; whatever we print is cleaned of them.

The names are data (references/service.yaml, `secrets_handling`); this module is the only one that looks at values.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from inference_service import references
from inference_service.errors import BadInput

REDACTED = "[redacted]"
# A shorter value would blank ordinary words out of every log.
_SHORTEST_REDACTED = 6


def read(names: Iterable[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The values of these secrets, to be handed to a platform's API or a child's environment and nowhere else.

    Raises:
        BadInput: one is not set; the message names the variable to set.
    """
    values = {}
    for name in names:
        if not environ.get(name):
            raise BadInput("secret_not_set", f"the environment variable {name} is not set", f"export {name}=… and run this again")
        values[name] = environ[name]
    return values


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` with the value of every secret that this process knows replaced by `[redacted]`."""
    for value in _known_values(environ):
        text = text.replace(value, REDACTED)
    return text


def redact_document(document: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """The same for every string of a JSON value, keys included."""
    values = _known_values(environ)
    return _cleaned(document, values) if values else document


def _known_values(environ: Mapping[str, str]) -> list[str]:
    rules = references.load().environment
    values = {environ.get(name, "") for name in (*rules.secret, *rules.never_passed)}
    # The longest first: one secret may be the beginning of another.
    return sorted((value for value in values if len(value) >= _SHORTEST_REDACTED), key=len, reverse=True)


def _cleaned(document: Any, values: list[str]) -> Any:
    if isinstance(document, str):
        for value in values:
            document = document.replace(value, REDACTED)
        return document
    if isinstance(document, Mapping):
        return {_cleaned(key, values): _cleaned(item, values) for key, item in document.items()}
    if isinstance(document, list | tuple):
        return [_cleaned(item, values) for item in document]
    return document

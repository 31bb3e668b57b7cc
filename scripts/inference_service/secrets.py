"""Secrets are named everywhere and read from the environment at the last moment; whatever we print is cleaned of them.

The names are data (references/service.yaml, `secrets_handling`); this module is the only one that looks at values.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

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
            raise BadInput(
                "secret_not_set", f"the environment variable {name} is not set", f"export {name}=… and run this again"
            )
        values[name] = environ[name]
    return values


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` with the value of every secret that this process knows replaced by `[redacted]`.

    So is a value in its JSON, URL, shell and base64 spelling, and whatever follows a secret's name and an equals sign:
    a log may hold a value that this process was never given.
    """
    return _cleaner(environ)(text)


def redact_document(document: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """The same for every string of a JSON value, keys included."""
    return _cleaned(document, _cleaner(environ))


def refuse_values(document: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a document that holds a secret's value in any of its strings.

    Raises:
        BadInput: it does; the message names the secret.
    """
    for name in _names():
        pattern = _pattern_of((environ.get(name, ""),))
        if pattern and any(pattern.search(text) for text in _strings(document)):
            raise BadInput(
                "secret_in_launch_spec",
                f"the value of {name} is in what would be shown, stored and run",
                f"leave it out; a service gets it by name: --env {name}",
            )


def _names() -> tuple[str, ...]:
    rules = references.load().environment
    return tuple(sorted({*rules.secret, *rules.never_passed}))


def _cleaner(environ: Mapping[str, str]) -> Callable[[str], str]:
    names = _names()
    values = _pattern_of(tuple(sorted({environ.get(name, "") for name in names})))
    assigned = _assignments_of(names)

    def clean(text: str) -> str:
        if values:
            text = values.sub(REDACTED, text)
        return assigned.sub(lambda match: f"{match[1]}={REDACTED}", text)

    return clean


@functools.lru_cache(maxsize=64)
def _pattern_of(values: tuple[str, ...]) -> re.Pattern[str] | None:
    spellings = {spelling for value in values for spelling in _spellings(value)}
    # The longest first: one secret may be the beginning of another.
    long_enough = sorted(
        (text for text in spellings if len(text) >= _SHORTEST_REDACTED), key=lambda text: (-len(text), text)
    )
    return re.compile("|".join(map(re.escape, long_enough))) if long_enough else None


@functools.cache
def _assignments_of(names: tuple[str, ...]) -> re.Pattern[str]:
    # NAME=$NAME, NAME=<token> and NAME=… are how commands are written for people, and hold nothing.
    return re.compile(
        rf"(?<![A-Za-z0-9_])({'|'.join(names)})=(?![\"']?(?:\$|<|…|\.\.\.|\[redacted\]))(?:\"[^\"]+\"|'[^']+'|[^\s\"',;)]+)"
    )


def _spellings(value: str) -> Iterator[str]:
    # A value read from a file often has a line end that whoever uses it drops.
    for plain in {value, value.strip(), *value.splitlines()}:
        if len(plain) < _SHORTEST_REDACTED:
            continue
        yield plain
        yield json.dumps(plain)[1:-1]
        yield json.dumps(plain, ensure_ascii=False)[1:-1]
        yield shlex.quote(plain).removeprefix("'").removesuffix("'")
        raw = plain.encode(errors="surrogateescape")
        yield quote(raw, safe="")
        yield quote(raw)
        yield quote_plus(raw)
        yield from _base64_spellings(raw)


def _base64_spellings(raw: bytes) -> Iterator[str]:
    # Where the value begins inside a group of three bytes decides how it is spelled; the characters at either end that
    # its neighbours share are left out.
    for offset in range(3):
        inner = len(raw) - (-offset % 3)
        whole = raw[-offset % 3 :][: inner - inner % 3]
        for encoded in (base64.b64encode(whole), base64.urlsafe_b64encode(whole)):
            text = encoded.decode()
            if len(text) >= 2 * _SHORTEST_REDACTED:
                yield text


def _strings(document: Any) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        for pair in document.items():
            for item in pair:
                yield from _strings(item)
    elif isinstance(document, list | tuple):
        for item in document:
            yield from _strings(item)


def _cleaned(document: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(document, str):
        return clean(document)
    if isinstance(document, Mapping):
        return {_cleaned(key, clean): _cleaned(item, clean) for key, item in document.items()}
    if isinstance(document, list | tuple):
        return [_cleaned(item, clean) for item in document]
    return document

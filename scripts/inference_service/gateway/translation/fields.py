"""Reads the fields of a request that anyone may have written: each is of its type, or refused by its path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inference_service.gateway.translation.facts import FieldRules

Json = dict[str, Any]


class Untranslatable(Exception):
    """A request that has no translation: HTTP 400.

    `field` is the path of what is in the way, as in `messages[2].content[1].type`; `message` names it too.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = f"{field}: {message}"


def apply_rules(body: Mapping[str, Any], translated: frozenset[str], rules: FieldRules) -> None:
    """Refuse what is neither translated nor ignored nor neutral.

    Raises:
        Untranslatable: the first such field, with the reason.
    """
    for name, value in body.items():
        if name in translated or value is None or name in rules.ignored:
            continue
        if name not in rules.refused:
            raise Untranslatable(_short(name), "this field is not known")
        # `in` alone would take False for 0 and 1 for True.
        if not any(value == neutral and type(value) is type(neutral) for neutral in _numbers(rules.neutral.get(name))):
            raise Untranslatable(name, rules.refused[name])


def text(value: object, path: str) -> str:
    """The value, if it is text."""
    if isinstance(value, str):
        return value
    raise Untranslatable(path, "must be text")


def mapping(value: object, path: str) -> Mapping[str, Any]:
    """The value, if it is an object."""
    if isinstance(value, dict):
        return value
    raise Untranslatable(path, "must be an object")


def items(value: object, path: str) -> Iterable[tuple[str, Any]]:
    """Each item of an array with its own path."""
    if not isinstance(value, list):
        raise Untranslatable(path, "must be an array")
    return ((f"{path}[{index}]", item) for index, item in enumerate(value))


def number(value: object, path: str, lowest: float, highest: float, whose: str) -> float:
    """The value, if it is a number in the range of `whose` field."""
    if type(value) not in (int, float):
        raise Untranslatable(path, "must be a number")
    if not lowest <= value <= highest:  # type: ignore[operator]
        raise Untranslatable(path, f"{value} is not between {lowest:g} and {highest:g}, which is the range of {whose}")
    return value  # type: ignore[return-value]


def whole_number(value: object, path: str) -> int:
    """The value, if it is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise Untranslatable(path, "must be a whole number of at least 1")
    return value


def true_or_false(value: object, path: str) -> bool:
    """The value, if it is a boolean."""
    if isinstance(value, bool):
        return value
    raise Untranslatable(path, "must be true or false")


def unknown(value: object, path: str, choices: str) -> Untranslatable:
    """For a value that is none of the choices."""
    return Untranslatable(path, f"{_short(value)!r} is not one of: {choices}")


def _short(value: object) -> str:
    return str(value)[:80]


def _numbers(neutral: list[Any] | None) -> Iterable[Any]:
    for value in neutral or ():
        yield value
        if type(value) is int:  # 0.0 is as neutral as 0.
            yield float(value)

"""The extra startup specs of an arch, `--spec name=value`: which there are and what their values mean is data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inference_service import plain_text
from inference_service.errors import BadInput
from inference_service.references import Arch, SpecField

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_DEEPEST = 20


def parse(assignments: Sequence[str], arch: Arch) -> dict[str, Any]:
    """The values by name, as JSON values, from `name=value` texts.

    Raises:
        BadInput: no such spec for this arch, a refused one, one given twice, or a value that it cannot have.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadInput("bad_spec", f"--spec {assignment!r} is not name=value", "write --spec name=value")
        field = _field(name, arch)
        if name in values:
            raise BadInput("spec_given_twice", f"--spec {name} is given twice", "give it once")
        try:
            values[name] = _READERS[field.type](text)
        except (ValueError, RecursionError):
            raise _refused(field, text) from None
    return check(values, arch)


def check(values: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """The values, when this arch takes each of them.

    Raises:
        BadInput: no such spec for this arch, a refused one, or a value that it cannot have.
    """
    for name, value in values.items():
        field = _field(name, arch)
        if not _fits(value, field):
            raise _refused(field, value)
    return dict(values)


def defaults(arch: Arch) -> dict[str, Any]:
    """The values of the specs that have one when the user gives none."""
    return {name: field.default for name, field in arch.launch.specs.items() if field.default is not None}


def _field(name: str, arch: Arch) -> SpecField:
    launch = arch.launch
    if name in launch.refused_specs:
        raise BadInput("refused_spec", f"--spec {name} is refused: {launch.refused_specs[name]}", "leave it out")
    if launch.registered_key and name == launch.registered_key.spec:
        return SpecField(name, "string", "registered model key", flag=launch.registered_key.flag)
    if name not in launch.specs:
        known = [*launch.specs, *([launch.registered_key.spec] if launch.registered_key else ())]
        described = f"it takes: {', '.join(known)}" if known else "it takes none: leave --spec out"
        raise BadInput("unknown_spec", f"{arch.network_arch} has no spec {name!r}", described)
    return launch.specs[name]


def _fits(value: Any, field: SpecField) -> bool:
    if field.type == "boolean":
        return isinstance(value, bool)
    if field.type == "string":
        return isinstance(value, str) and _is_argument(value, field)
    if field.type == "object":
        return isinstance(value, dict) and _is_literal(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (field.type == "number" and isinstance(value, float) and math.isfinite(value)):
        return False
    return field.minimum is None or value >= field.minimum


def _is_argument(text: str, field: SpecField) -> bool:
    plain_text.check(text, f"--spec {field.name}")
    # A flag's value that begins with a dash would be read as the next flag.
    return field.flag is None or (bool(text) and not text.startswith("-"))


def _is_literal(value: Any, depth: int = 0) -> bool:
    """Whether it can be written so that JSON and Python read it alike: no null, no NaN or infinity, text in UTF-8."""
    if depth > _DEEPEST or value is None:
        return False
    if isinstance(value, dict):
        return all(_is_literal(item, depth + 1) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(_is_literal(item, depth + 1) for item in value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return not isinstance(value, float) or math.isfinite(value)


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _number(text: str) -> float | int:
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return float(text)


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError from None


_READERS: Mapping[str, Callable[[str], Any]] = {
    "string": str,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "object": json.loads,
}
_DESCRIPTIONS = {
    "string": "a text that does not begin with '-'",
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "object": "a JSON object without null",
}


def _refused(field: SpecField, value: Any) -> BadInput:
    least = "" if field.minimum is None else f" of at least {field.minimum:g}"
    return BadInput(
        "bad_spec_value",
        f"--spec {field.name}={value!r} is refused",
        f"give {_DESCRIPTIONS[field.type]}{least}: {field.help}",
    )

"""Sampling values of one request: what to ask the user for, and what the user's answers mean (seed 6.1).

Each field that an arch asks for is either set or its default is explicitly accepted; nothing is assumed. A value is
applied verbatim: it is sent as it was written, or refused with the range it is outside of, never clamped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from inference_service import output, references
from inference_service.errors import BadInput, Need
from inference_service.references import Arch, SamplingField

_INTEGER = re.compile(r"[+-]?[0-9]+")


def resolve(arch: Arch, assignments: Sequence[str], accepted: Sequence[str], accept_all: bool) -> dict[str, Any]:
    """The values to send by field name. A field whose default is null and accepted is left out.

    `assignments` are `name=value` as typed, `accepted` names whose default the user takes; `accept_all` takes the
    default of every field that is not set. What is left over is asked for, all of it in one round.

    Raises:
        BadInput: a field that this arch does not take, a value outside its field's type or range, a field set twice, or
            both set and accepted.
        DecisionNeeded: fields are left over and nobody is at a terminal.
    """
    values = refuse_bad(arch, assignments, accepted)
    taken = set(arch.request.fields) if accept_all else set(accepted)
    asked = [field for field in fields_to_ask(arch) if field.name not in values]
    values.update(_defaults(field for field in asked if field.name in taken))
    values.update(_ask([field for field in asked if field.name not in taken]))
    return {name: values[name] for name in arch.request.fields if name in values}


def refuse_bad(arch: Arch, assignments: Sequence[str], accepted: Sequence[str]) -> dict[str, Any]:
    """The values that are set, when all that was given is good (BadInput otherwise); nobody is asked anything."""
    values = _parse_assignments(arch, assignments)
    for name in accepted:
        _field_of(arch, name)
        if name in values:
            raise BadInput("field_set_and_accepted", f"{name} is both set and left at its default", _choose_one(name))
    return values


def fields_to_ask(arch: Arch) -> list[SamplingField]:
    """The fields that the user is asked about before each request to this arch, in the order of request.yaml."""
    return [field for field in arch.request.fields.values() if field.ask]


def parse(field: SamplingField, text: str) -> Any:
    """The value that `text` stands for, by the field's type.

    Raises:
        BadInput: it is not of that type or outside the field's range; the message says both.
    """
    try:
        value = _READERS[field.type](text)
    except ValueError:
        raise _refused(field, text) from None
    if isinstance(value, int | float) and not isinstance(value, bool) and not _in_range(field, value):
        raise _refused(field, text)
    return value


def range_of(field: SamplingField) -> str | None:
    """The field's range in words, `0 to 2` for example; None where any value of its type will do."""
    if field.minimum is not None and field.maximum is not None:
        return f"{field.minimum:g} to {field.maximum:g}"
    limits = (("above", field.exclusive_minimum), ("at least", field.minimum), ("at most", field.maximum))
    return ", ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None) or None


def describe(field: SamplingField) -> dict[str, Any]:
    """The field as JSON: name, type, default, range and what it is for."""
    return {
        "name": field.name,
        "type": field.type,
        "default": field.default,
        "range": range_of(field),
        "description": field.description,
    }


def _parse_assignments(arch: Arch, assignments: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadInput("not_an_assignment", f"--set {assignment!r} has no '='", "write --set name=value")
        if name in values:
            raise BadInput("field_set_twice", f"{name} is set more than once", f"give --set {name}=… once")
        values[name] = parse(_field_of(arch, name), text)
    return values


def _field_of(arch: Arch, name: str) -> SamplingField:
    try:
        return arch.request.fields[name]
    except KeyError:
        raise _not_taken(arch, name) from None


def _not_taken(arch: Arch, name: str) -> BadInput:
    # Seed 6.0, cross-check: a body made for one arch fails in another's container in a way that is hard to read.
    takers = [other.network_arch for other in references.load().archs.values() if name in other.request.fields]
    takes = f"{arch.network_arch} takes: {', '.join(arch.request.fields)}"
    if takers:
        return BadInput(
            "field_of_another_arch",
            f"{arch.network_arch} does not take {name}; {' and '.join(takers)} would",
            f"leave {name} out, or send to a service of that arch with --network-arch; {takes}",
        )
    return BadInput("unknown_field", f"there is no sampling field {name!r}", takes)


def _defaults(fields: Iterable[SamplingField]) -> dict[str, Any]:
    return {field.name: field.default for field in fields if field.default is not None}


def _ask(fields: list[SamplingField]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    while fields:
        answers = output.decide([_need(field) for field in fields])
        values.update(_defaults(field for field in fields if field.name not in answers))
        fields = _take_answers(fields, answers, values)
    return values


def _take_answers(
    fields: Collection[SamplingField], answers: Mapping[str, str], values: dict[str, Any]
) -> list[SamplingField]:
    """Put what was answered well into `values`; the fields to ask for again."""
    again = []
    for field in fields:
        if field.name not in answers:
            continue
        try:
            values[field.name] = parse(field, answers[field.name])
        except BadInput as error:
            output.note(error.message)
            again.append(field)
    return again


def _need(field: SamplingField) -> Need:
    return Need(
        name=field.name,
        question=f"{field.name}: {field.description}",
        answer_with=_choose_one(field.name),
        type=field.type,
        default=field.default,
        range=range_of(field),
    )


def _choose_one(name: str) -> str:
    return f"--set {name}=VALUE or --accept-default {name}"


def _refused(field: SamplingField, text: str) -> BadInput:
    allowed = range_of(field)
    wanted = f"{_TYPE_WORDS[field.type]}, {allowed}" if allowed else _TYPE_WORDS[field.type]
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return BadInput("bad_value", f"{field.name}={shown}: it must be {wanted}", _choose_one(field.name))


def _in_range(field: SamplingField, value: float) -> bool:
    return (
        (field.minimum is None or value >= field.minimum)
        and (field.exclusive_minimum is None or value > field.exclusive_minimum)
        and (field.maximum is None or value <= field.maximum)
    )


def _integer(text: str) -> int:
    # int() alone would also take "1_000", " 7 " and digits of other scripts.
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    if _INTEGER.fullmatch(text):
        return int(text)
    value = float(text)
    if not math.isfinite(value) or "_" in text or text != text.strip():
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _string_list(text: str) -> str | list[str]:
    """One text, or several as a JSON list. What only begins like a list, such as `[END]`, is one text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, list):
        return text
    if not all(isinstance(item, str) for item in value):
        raise ValueError(text)
    return value


_READERS: Mapping[str, Callable[[str], Any]] = {
    "integer": _integer,
    "number": _number,
    "string": str,
    "boolean": _boolean,
    "string_list": _string_list,
}
_TYPE_WORDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "string_list": "a text or a JSON list of texts",
}

"""A vendor's CSV of usage or cost, added up per day and model; its columns' names are in references/invoice.yaml."""

from __future__ import annotations

import csv
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path

from inference_service import paths, reference_validation
from inference_service.errors import BadInput

TOKENS = (
    "uncached_input_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cached_tokens",
    "output_tokens",
)
"""Kinds of tokens that are priced apart; what is none of the others of the prompt is uncached input."""

Line = tuple[str, str]
"""A day (2026-01-31, UTC) and a model's name as `Vendor.model` has it."""


@dataclass
class Amounts:
    """What one line of either side says. None: it does not say so."""

    cost_usd: Decimal | None = None
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Vendor:
    """How one vendor's files are read, and which of our requests they are about."""

    name: str
    network_arch: str
    columns: Mapping[str, Sequence[str]]
    token_cost_types: frozenset[str]
    model_rules: Sequence[tuple[re.Pattern[str], str]]

    def model(self, name: str) -> str:
        """A model's name in the one spelling that both sides are compared in."""
        name = name.strip().lower()
        for pattern, replacement in self.model_rules:
            name = pattern.sub(replacement, name)
        return name


@dataclass(frozen=True)
class Invoice:
    """A file added up. `has_cost`, `has_tokens`: which of the two it has; `other_usd` is the cost of no tokens."""

    lines: Mapping[Line, Amounts]
    has_cost: bool
    has_tokens: bool
    other_usd: Decimal


def vendor(name: str) -> Vendor:
    """The vendor of references/invoice.yaml.

    Raises:
        BadInput: there is none of that name.
    """
    file = paths.REFERENCES / "invoice.yaml"
    vendors = reference_validation.validated(file, reference_validation.read_yaml(file))["vendors"]
    if name not in vendors:
        raise BadInput("unknown_vendor", f"no vendor {name!r} is known", f"choose among --vendor {', '.join(vendors)}")
    known = vendors[name]
    rules = [(re.compile(rule["pattern"]), rule["replacement"]) for rule in known["model_rules"]]
    return Vendor(name, known["network_arch"], known["columns"], frozenset(known["token_cost_types"]), rules)


def read(file: Path, vendor: Vendor) -> Invoice:
    """The vendor's file.

    Raises:
        BadInput: it cannot be read, has not the columns, or a line has no day, model or number where one belongs; the
            message names file and line.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return _added_up(csv.reader(stream, strict=True), vendor, file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput("invoice_unreadable", f"{file} cannot be read as CSV: {error}", _FIX) from error


_FIX = "give the vendor's own export as it was downloaded; references/invoice.yaml lists the columns that are known"


def _added_up(rows: Iterator[list[str]], vendor: Vendor, file: Path) -> Invoice:
    lines: dict[Line, Amounts] = defaultdict(Amounts)
    other = Decimal(0)
    places = _places(next(rows, []), vendor, file)
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        cell = functools.partial(_cell, row, places)
        where = f"{file}, line {number}"
        cost = _number(cell("cost_usd"), where) if "cost_usd" in places else None
        kind = cell("cost_type").lower()
        if kind and kind not in vendor.token_cost_types:
            other += cost or 0
            continue
        amounts = lines[(_day(cell("day"), where), _model(cell("model"), vendor, where))]
        if cost is not None:
            amounts.cost_usd = (amounts.cost_usd or Decimal(0)) + cost
        for name in TOKENS:
            if name in places:
                amounts.tokens[name] = amounts.tokens.get(name, 0) + int(_number(cell(name), where))
    return Invoice(dict(lines), "cost_usd" in places, any(name in places for name in TOKENS), other)


def _cell(row: Sequence[str], places: Mapping[str, int], name: str) -> str:
    place = places.get(name, len(row))
    return row[place].strip() if place < len(row) else ""


def _places(header: Sequence[str], vendor: Vendor, file: Path) -> dict[str, int]:
    """Where the columns are."""
    names = [name.strip().lower() for name in header]
    places = {
        ours: next(names.index(theirs) for theirs in known if theirs in names)
        for ours, known in vendor.columns.items()
        if any(theirs in names for theirs in known)
    }
    missing = [name for name in ("day", "model") if name not in places]
    if missing or not any(name in places for name in ("cost_usd", *TOKENS)):
        what = " and ".join(missing) or "cost or tokens"
        raise BadInput("invoice_columns", f"{file} has no column for {what}; it has {', '.join(header)}", _FIX)
    return places


def _day(text: str, where: str) -> str:
    try:
        # A time of the day may follow.
        return date.fromisoformat(text[:10]).isoformat()
    except ValueError:
        raise BadInput("invoice_line", f"{where}: {text!r} is no date like 2026-01-31", _FIX) from None


def _model(text: str, vendor: Vendor, where: str) -> str:
    if not text:
        raise BadInput("invoice_line", f"{where}: there is no model", _FIX)
    return vendor.model(text)


def _number(text: str, where: str) -> Decimal:
    try:
        number = Decimal(text.replace(",", "").removeprefix("$") or 0)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise BadInput("invoice_line", f"{where}: {text!r} is no number", _FIX)
    return number

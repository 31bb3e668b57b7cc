"""A vendor's invoice against our log: per day and model what we say, what they say, and the difference.

Costs are compared where the file has them, else tokens. A day or a model that only one side has is a difference too;
only the days from the file's first to its last are looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from inference_service import sql
from inference_service.errors import BadInput
from inference_service.request_log.invoice import TOKENS, Amounts, Invoice, Line, Vendor


@dataclass(frozen=True)
class Tolerance:
    """How far a line may be off: an amount of USD, or a part of what the vendor says."""

    usd: Decimal = Decimal("0.01")
    part: Decimal = Decimal(0)

    def allows(self, ours: Decimal, theirs: Decimal, *, money: bool) -> bool:
        """Whether two numbers are the same for us. Tokens are whole: an amount of USD allows no difference in them."""
        limit = max(self.usd if money else Decimal(0), abs(theirs) * self.part)
        return abs(ours - theirs) <= limit


def tolerance(text: str) -> Tolerance:
    """What `--tolerance` means: `0.05` USD per line, or `0.5%` of the vendor's amount.

    Raises:
        BadInput: it is neither.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%?)", text)
    if not found:
        raise BadInput(
            "invalid_tolerance", f"--tolerance {text!r} is neither USD nor a percentage", "give 0.01 or 0.5%"
        )
    number = Decimal(found[1])
    return Tolerance(Decimal(0), number / 100) if found[2] else Tolerance(number)


@dataclass
class _Ours(Amounts):
    requests: int = 0
    unpriced: int = 0


def compare(database: sql.Database, invoice: Invoice, vendor: Vendor, allowed: Tolerance) -> dict[str, Any]:
    """The comparison as JSON: its lines, totals, and whether all of it `matches`.

    Raises:
        ToolError: the log cannot be read.
    """
    days = sorted({day for day, _ in invoice.lines})
    ours = _ours(database, vendor, days) if days else {}
    lines = [
        _line(key, ours.get(key, _Ours()), invoice.lines.get(key, Amounts()), invoice, allowed)
        for key in sorted({*ours, *invoice.lines})
    ]
    return {
        "log": database.shown,
        "vendor": vendor.name,
        "from": days[0] if days else None,
        "to": days[-1] if days else None,
        "compared": "cost" if invoice.has_cost else "tokens",
        "tolerance": {"usd": format(allowed.usd, "f"), "percent": format(allowed.part * 100, "f")},
        "lines": lines,
        "totals": _totals(lines, invoice),
        "unpriced": sum(line["ours"]["unpriced"] for line in lines),
        "matches": all(line["matches"] for line in lines),
    }


def _ours(database: sql.Database, vendor: Vendor, days: Sequence[str]) -> dict[Line, _Ours]:
    of = database.expressions
    begin = datetime.fromisoformat(days[0]).replace(tzinfo=timezone.utc)
    end = datetime.combine(date.fromisoformat(days[-1]), datetime.min.time(), timezone.utc) + timedelta(days=1)
    writes = ("cache_write_5m_tokens", "cache_write_1h_tokens")
    parts = {name: f"COALESCE(SUM({name}), 0)" for name in ("cached_tokens", *writes, "output_tokens", "input_tokens")}
    with database.snapshot() as cursor:
        found = cursor.execute(
            f"SELECT {of.day('time')} AS day, model, COUNT(*) AS requests,"  # noqa: S608
            " COUNT(*) FILTER (WHERE cost_usd IS NULL AND (input_tokens > 0 OR output_tokens > 0)) AS unpriced,"
            f" {of.decimal_sum('cost_usd')} AS cost_usd,"
            f" {', '.join(f'{expression} AS {name}' for name, expression in parts.items())}"
            " FROM requests WHERE time >= :begin AND time < :end AND network_arch = :arch AND model IS NOT NULL"
            f" GROUP BY {of.day('time')}, model",
            {"begin": begin, "end": end, "arch": vendor.network_arch},
        ).documents()
    sums: dict[Line, _Ours] = defaultdict(_Ours)
    for row in found:
        # Ours counts what was read from and written to the cache into the input as well.
        input_tokens = int(row["input_tokens"])
        row["uncached_input_tokens"] = input_tokens - sum(int(row[name]) for name in ("cached_tokens", *writes))
        cost = sql.as_decimal(row["cost_usd"])
        if not input_tokens and not int(row["output_tokens"]) and not cost:
            # Refused before it was sent, or failed: nothing that an invoice has.
            continue
        line = sums[(row["day"], vendor.model(row["model"]))]
        line.requests += row["requests"]
        line.unpriced += row["unpriced"]
        line.cost_usd = (line.cost_usd or Decimal(0)) + (cost or 0)
        for name in TOKENS:
            line.tokens[name] = line.tokens.get(name, 0) + int(row[name])
    return dict(sums)


def _line(key: Line, ours: _Ours, theirs: Amounts, invoice: Invoice, allowed: Tolerance) -> dict[str, Any]:
    our_cost = ours.cost_usd or Decimal(0)
    difference: dict[str, Any] = {}
    matches = True
    their_cost = (theirs.cost_usd or Decimal(0)) if invoice.has_cost else None
    if their_cost is not None:
        difference["cost_usd"] = format(our_cost - their_cost, "f")
        matches = allowed.allows(our_cost, their_cost, money=True)
    if invoice.has_tokens:
        for name in TOKENS:
            pair = (ours.tokens.get(name, 0), theirs.tokens.get(name, 0))
            difference[name] = pair[0] - pair[1]
            if not invoice.has_cost:
                matches = matches and allowed.allows(Decimal(pair[0]), Decimal(pair[1]), money=False)
    return {
        "day": key[0],
        "model": key[1],
        "ours": {
            "requests": ours.requests,
            "unpriced": ours.unpriced,
            "cost_usd": format(our_cost, "f"),
            **{name: ours.tokens.get(name, 0) for name in TOKENS},
        },
        "theirs": {
            "cost_usd": None if their_cost is None else format(their_cost, "f"),
            **{name: theirs.tokens.get(name, 0) if invoice.has_tokens else None for name in TOKENS},
        },
        "difference": difference,
        "matches": matches,
    }


def _totals(lines: Sequence[dict[str, Any]], invoice: Invoice) -> dict[str, Any]:
    ours = sum((Decimal(line["ours"]["cost_usd"]) for line in lines), Decimal(0))
    theirs = sum((Decimal(line["theirs"]["cost_usd"] or 0) for line in lines), Decimal(0))
    return {
        "ours_usd": format(ours, "f"),
        "theirs_usd": format(theirs, "f") if invoice.has_cost else None,
        "difference_usd": format(ours - theirs, "f") if invoice.has_cost else None,
        "other_usd": format(invoice.other_usd, "f"),
    }

"""The usage report as a table for people and as CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any, TextIO

Report = Mapping[str, Any]

_TABLE = {
    "requests": "requests",
    "errors": "errors",
    "unfinished": "unfi-\nnished",
    "input_tokens": "tokens\nin",
    "output_tokens": "tokens\nout",
    "cached_tokens": "tokens\ncached",
    "latency_p50_seconds": "p50\ns",
    "latency_p95_seconds": "p95\ns",
    "cost_usd": "USD",
}
_ONLY_IF_ANY = ("unfinished", "cached_tokens", "cost_usd")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def table(report: Report, stream: TextIO) -> None:
    """Write the report as a table; what totals leave out (unpriced, unmetered requests) is said below it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    totals = report["totals"]
    keys = _keys(report)
    measures = [name for name in _TABLE if totals[name] or name not in _ONLY_IF_ANY]
    # A job id and a model's name side by side leave a terminal no room for figures, so a group's names are stacked.
    grid = Table(box=box.HORIZONTALS, show_footer=True, show_lines=len(keys) > 1, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column(", ".join(report["by"]), footer="total", overflow="fold")
    for name in measures:
        grid.add_column(_TABLE[name], footer=_cell(totals[name]), justify="right", no_wrap=True)
    for group in report["groups"]:
        names = "\n".join(_cell(group[key]) for key in keys)
        grid.add_row(Text(names), *(_cell(group[name]) for name in measures))
    # A pipe has no width: nothing is wrapped there.
    console = Console(file=stream, width=None if stream.isatty() else 1000)
    console.print(grid)
    for remark in _remarks(report):
        console.print(Text(remark))


def as_csv(report: Report) -> str:
    """The groups as CSV (RFC 4180) with a header line, without totals. A name that a spreadsheet would run as a formula
    gets an apostrophe in front."""
    text = io.StringIO()
    columns = [*_keys(report), *report["totals"]]
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for group in report["groups"]:
        writer.writerow([_harmless(group[column]) for column in columns])
    return text.getvalue()


def _keys(report: Report) -> list[str]:
    from inference_service.request_log.report import DIMENSIONS

    return [field for dimension in report["by"] for field in DIMENSIONS[dimension]]


def _remarks(report: Report) -> list[str]:
    totals = report["totals"]
    remarks = []
    if totals["unpriced"]:
        remarks.append(
            f"{totals['unpriced']} of {totals['requests']} requests are unpriced: no cost of theirs is in USD"
        )
    if totals["unmetered"]:
        remarks.append(f"{totals['unmetered']} of {totals['requests']} requests have no token counts")
    return remarks


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    # A caller's name is whatever a caller wrote: an escape sequence in it must not reach the terminal.
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))


def _harmless(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value

"""The usage report as a table for people and as CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.table import Table

Report = Mapping[str, Any]

_TABLE = {
    "requests": "requests",
    "errors": "errors",
    "unfinished": "unfi-\nnished",
    "input_tokens": "tokens\nin",
    "output_tokens": "tokens\nout",
    "cached_tokens": "tokens\ncached",
    "cache_write_tokens": "tokens\nto cache",
    "latency_p50_seconds": "p50\ns",
    "latency_p95_seconds": "p95\ns",
    "latency_p99_seconds": "p99\ns",
    "cost_usd": "USD",
}
_ONLY_IF_ANY = ("unfinished", "cached_tokens", "cache_write_tokens", "cost_usd")
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
    if report.get("gpus"):
        console.print(_gpus(report["gpus"]))


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


def _gpus(lines: Sequence[Mapping[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("GPUs of", overflow="fold")
    for heading in ("GPUs", "USD", "charged", "idle"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    for line in lines:
        amounts = [_cell(line[name]) for name in ("num_gpus", "cost_usd", "charged_usd", "idle_usd")]
        grid.add_row(Text(_cell(line["job_id"])), *amounts, Text(line["unpriced_because"] or ""))
    return grid


def _keys(report: Report) -> list[str]:
    from inference_service.request_log.report import DIMENSIONS

    return [field for dimension in report["by"] for field in DIMENSIONS[dimension]]


def _remarks(report: Report) -> list[str]:
    totals = report["totals"]
    remarks = []
    if totals["unpriced"]:
        models = ", ".join(f"{_cell(each['model'])} ({each['requests']})" for each in report["unpriced_models"])
        remarks.append(
            f"{totals['unpriced']} of {totals['requests']} requests are unpriced: no cost of theirs is in USD"
            f" (models: {models})"
        )
    if totals["unmetered"]:
        remarks.append(f"{totals['unmetered']} of {totals['requests']} requests have no token counts")
    if totals["estimated"]:
        remarks.append(f"tokens of {totals['estimated']} requests are estimates: nobody reported them")
    if "tag" in report["by"]:
        remarks.append("a request with several tags is in the group of each, and in the total once")
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


def comparison(document: Report, stream: TextIO) -> None:
    """Write a comparison with an invoice: a line per day and model, those that differ marked; the totals below."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    by_cost = document["compared"] == "cost"
    grid = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("day", "model"):
        grid.add_column(heading, overflow="fold")
    measures = (
        ("cost_usd",)
        if by_cost
        else tuple(name for name in document["lines"][0]["difference"])
        if document["lines"]
        else ()
    )
    for name in measures:
        for side in ("ours", "theirs", "difference"):
            grid.add_column(f"{name.removesuffix('_tokens').replace('_', ' ')}\n{side}", justify="right", no_wrap=True)
    grid.add_column("")
    for line in document["lines"]:
        cells = [_cell(line[side][name]) for name in measures for side in ("ours", "theirs", "difference")]
        grid.add_row(Text(line["day"]), Text(_cell(line["model"])), *cells, "" if line["matches"] else "differs")
    console = Console(file=stream, width=None if stream.isatty() else 1000)
    console.print(grid)
    totals = document["totals"]
    if by_cost:
        console.print(
            Text(
                f"USD: ours {totals['ours_usd']}, theirs {totals['theirs_usd']}, difference {totals['difference_usd']}"
            )
        )
    if document["unpriced"]:
        console.print(Text(f"{document['unpriced']} of our requests are unpriced"))
    console.print(Text("all within the tolerance" if document["matches"] else "there are differences"))

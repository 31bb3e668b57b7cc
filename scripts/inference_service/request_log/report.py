"""Who used what: the request log added up per caller, service, model or day.

Percentiles are by nearest rank: p95 is the smallest latency that at least 95 % of the finished requests did not exceed,
so it is always one that was measured. SQLite sorts and adds, so memory stays flat whatever the log's size.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from inference_service.errors import BadInput
from inference_service.request_log.rows import UNFINISHED
from inference_service.sql import sqlite_file
from inference_service.sql.values import stored_time

DIMENSIONS = {
    "caller": {"caller": "caller"},
    "service": {"service": "job_id", "network_arch": "network_arch", "platform": "platform"},
    "model": {"model": "model"},
    "day": {"day": "substr(time, 1, 10)"},
}
"""What the report can be grouped by, each with the fields it shows and where they come from. Days are days in UTC."""

DEFAULT_DIMENSIONS = ("caller", "service", "model")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

# errors: finished, but not with an answer. Tokens and cost are null where none of the requests knows them.
_MEASURES = {
    "requests": "COUNT(*)",
    "errors": f"COUNT(*) FILTER (WHERE error_type <> '{UNFINISHED}' OR (error_type IS NULL AND http_status >= 400))",
    "unfinished": f"COUNT(*) FILTER (WHERE error_type = '{UNFINISHED}')",
    "input_tokens": "SUM(input_tokens)",
    "output_tokens": "SUM(output_tokens)",
    "cached_tokens": "SUM(cached_tokens)",
    "unmetered": "COUNT(*) FILTER (WHERE input_tokens IS NULL AND output_tokens IS NULL)",
    "cost_usd": "decimal_sum(cost_usd) FILTER (WHERE cost_usd IS NOT NULL)",
    "unpriced": "COUNT(*) FILTER (WHERE cost_usd IS NULL)",
}
_FINISHED = "COUNT(total_seconds)"
_PERCENTILES = {"latency_p50_seconds": 50, "latency_p95_seconds": 95}


@dataclass(frozen=True)
class UsageReport:
    """Each group has its dimensions' fields and the measures, `totals` the measures alone; of rows since `since`."""

    log: Path
    since: datetime | None
    by: tuple[str, ...]
    groups: tuple[dict[str, Any], ...]
    totals: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "log": str(self.log),
            "since": stored_time(self.since) if self.since else None,
            "by": list(self.by),
            "groups": list(self.groups),
            "totals": self.totals,
        }


def usage(path: Path, by: Sequence[str] = DEFAULT_DIMENSIONS, since: datetime | None = None) -> UsageReport:
    """The usage report of the log at `path`; one without groups where there is no log yet.

    Raises:
        ToolError: the log is there and cannot be read.
    """
    fields = {name: column for dimension in by for name, column in DIMENSIONS[dimension].items()}
    try:
        # Without a log nothing is made: an empty database in memory gives the empty report.
        connection = sqlite_file.connect(path) if path.exists() else sqlite_file.empty()
        try:
            connection.create_aggregate("decimal_sum", 1, _DecimalSum)
            connection.row_factory = sqlite3.Row
            # One transaction: groups and totals are of the same moment.
            connection.execute("BEGIN")
            groups = _measure(connection, fields, since)
            (totals,) = _measure(connection, {}, since)
            connection.execute("COMMIT")
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise sqlite_file.unusable(path, error) from error
    return UsageReport(path, since, tuple(by), tuple(groups), totals)


def dimensions(named: Sequence[str]) -> tuple[str, ...]:
    """The dimensions of `--by` options, each one name or several separated by commas; the default where there are none.

    Raises:
        BadInput: one does not exist.
    """
    names = [name.strip() for option in named for name in option.split(",")]
    for name in names:
        if name not in DIMENSIONS:
            raise BadInput(
                "unknown_dimension", f"cannot group by {name!r}", f"choose among --by {','.join(DIMENSIONS)}"
            )
    return tuple(dict.fromkeys(names)) or DEFAULT_DIMENSIONS


def moment(text: str, now: datetime) -> datetime:
    """The time that `--since` means: a duration before `now` (30m, 24h, 7d) or ISO 8601, in UTC where it has no zone.

    Raises:
        BadInput: it is neither, or too long ago to be a date.
    """
    duration = re.fullmatch(r"([0-9]+)([smhdw])", text)
    try:
        if duration:
            return now - timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        # Python 3.10's fromisoformat does not know the suffix Z.
        parsed = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise BadInput(
            "invalid_since",
            f"--since {text!r} is neither a duration nor a time",
            "give a duration such as 30m, 24h or 7d, or ISO 8601 such as 2026-01-31 or 2026-01-31T09:00:00Z",
        ) from None


class _DecimalSum:
    """SQLite's own SUM would go through binary fractions."""

    def __init__(self) -> None:
        self.total = Decimal(0)
        self.any = False

    def step(self, value: Any) -> None:
        self.total += Decimal(value)
        self.any = True

    def finalize(self) -> Any:
        return format(self.total, "f") if self.any else None


def _measure(connection: sqlite3.Connection, fields: dict[str, str], since: datetime | None) -> list[dict[str, Any]]:
    """The groups by `fields` (names and columns; without any, all rows are one), most requests first."""
    # Without a condition that all rows keep, SQLite reads the table in order instead of through the index.
    where, values = ("time >= ?", (stored_time(since),)) if since else ("TRUE", ())
    keys = ", ".join(fields.values())
    selected = ", ".join(
        f"{column} AS {name}" for name, column in (fields | _MEASURES | {"finished": _FINISHED}).items()
    )
    grouping = f"GROUP BY {keys} ORDER BY requests DESC, {keys}" if fields else ""
    counted = connection.execute(f"SELECT {selected} FROM requests WHERE {where} {grouping}", values)  # noqa: S608
    groups = {tuple(row[: len(fields)]): dict(row) for row in counted}

    sorting = ", ".join((*fields.values(), "total_seconds"))
    query = f"SELECT {sorting} FROM requests WHERE {where} AND total_seconds IS NOT NULL ORDER BY {sorting}"  # noqa: S608
    latencies = connection.execute(query, values)
    latencies.row_factory = None
    for key, rows in itertools.groupby(latencies, key=lambda row: row[:-1]):
        _put_percentiles(groups[key], (row[-1] for row in rows))
    return [{name: group.get(name) for name in (*fields, *_MEASURES, *_PERCENTILES)} for group in groups.values()]


def _put_percentiles(group: dict[str, Any], ascending: Iterator[float]) -> None:
    ranks = {name: -(-percent * group["finished"] // 100) for name, percent in _PERCENTILES.items()}
    position = 0
    for name, rank in sorted(ranks.items(), key=lambda item: item[1]):
        # Two percentiles of few values may be the same one.
        if rank > position:
            value = next(itertools.islice(ascending, rank - position - 1, None))
            position = rank
        group[name] = value

"""Who used what: the request log added up per caller, team, service, model, tag, day and more.

Percentiles are by nearest rank: p95 is the smallest latency that at least 95 % of the finished requests did not exceed,
so it is always one that was measured. The database adds up: what it takes in memory is eight bytes per request at most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from inference_service import sql
from inference_service.errors import BadInput
from inference_service.request_log.rows import UNFINISHED
from inference_service.sql.database import Expressions

DIMENSIONS: Mapping[str, Mapping[str, Callable[[Expressions], str]]] = {
    "caller": {"caller": lambda of: "caller"},
    "team": {"team": lambda of: "team"},
    "project": {"project": lambda of: "project"},
    "service": {
        "service": lambda of: "job_id",
        "network_arch": lambda of: "network_arch",
        "platform": lambda of: "platform",
    },
    "model": {"model": lambda of: "model"},
    "tag": {"tag": lambda of: "tag.key || '=' || tag.value"},
    "route": {"route": lambda of: "route"},
    "platform": {"platform": lambda of: "platform"},
    "error_type": {"error_type": lambda of: "error_type"},
    "day": {"day": lambda of: of.day("time")},
    "hour": {"hour": lambda of: of.hour("time")},
}
"""What the report can be grouped by, each with the fields it shows and where they come from. Days and hours are UTC. A
request with several tags is in the group of each, so that these groups may add up to more than the totals."""

DEFAULT_DIMENSIONS = ("caller", "service", "model")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

# errors: finished, but not with an answer. Tokens and cost are null where none of the requests knows them.
_COUNTS = {
    "requests": "COUNT(*)",
    "errors": f"COUNT(*) FILTER (WHERE error_type <> '{UNFINISHED}' OR (error_type IS NULL AND http_status >= 400))",
    "unfinished": f"COUNT(*) FILTER (WHERE error_type = '{UNFINISHED}')",
    "input_tokens": "SUM(input_tokens)",
    "output_tokens": "SUM(output_tokens)",
    "cached_tokens": "SUM(cached_tokens)",
    "cache_write_tokens": "SUM(COALESCE(cache_write_5m_tokens, 0) + COALESCE(cache_write_1h_tokens, 0))"
    " FILTER (WHERE cache_write_5m_tokens IS NOT NULL OR cache_write_1h_tokens IS NOT NULL)",
    "unmetered": "COUNT(*) FILTER (WHERE input_tokens IS NULL AND output_tokens IS NULL)",
    "estimated": "COUNT(*) FILTER (WHERE usage_estimated)",
    "unpriced": "COUNT(*) FILTER (WHERE cost_usd IS NULL)",
}
_PERCENTILES = {"latency_p50_seconds": 50, "latency_p95_seconds": 95, "latency_p99_seconds": 99}
# What was refused, or failed at the vendor's, cost nothing for certain; but a sum of that alone would read as "free"
# beside requests whose cost is not known.
_SERVED_COST = "CASE WHEN priced_by IN ('not_sent', 'failed') THEN NULL ELSE cost_usd END"

MEASURES = (*_COUNTS, "cost_usd", *_PERCENTILES)
"""What is said of each group and of all requests."""


@dataclass(frozen=True)
class UsageReport:
    """Each group has its dimensions' fields and the measures, `totals` the measures alone; of rows since `since`.
    `unpriced_models` are the models of requests without a cost, those with most of them first."""

    log: str
    since: datetime | None
    by: tuple[str, ...]
    groups: tuple[dict[str, Any], ...]
    totals: dict[str, Any]
    unpriced_models: tuple[dict[str, Any], ...]

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "log": self.log,
            "since": sql.stored_time(self.since) if self.since else None,
            "by": list(self.by),
            "groups": list(self.groups),
            "totals": self.totals,
            "unpriced_models": list(self.unpriced_models),
        }


def usage(
    log: Path | sql.Database, by: Sequence[str] = DEFAULT_DIMENSIONS, since: datetime | None = None
) -> UsageReport:
    """The usage report of a SQLite file (an empty one where there is none yet) or of a database.

    Raises:
        ToolError: the log is there and cannot be read.
    """
    database = _database(log)
    try:
        return _usage(database, database.shown if isinstance(log, sql.Database) else str(log), by, since)
    finally:
        database.close()


def charged(log: Path | sql.Database, priced_by: str, since: datetime | None = None) -> dict[str, Decimal]:
    """What the requests to each service cost together, in USD by job_id, of those whose `priced_by` begins so.

    Raises:
        ToolError: the log is there and cannot be read.
    """
    database = _database(log)
    where, values = (" AND time >= :since", {"since": since}) if since else ("", {})
    try:
        with database.snapshot() as cursor:
            found = cursor.execute(
                f"SELECT job_id, {database.expressions.decimal_sum('cost_usd')} FROM requests"  # noqa: S608
                f" WHERE substr(priced_by, 1, :length) = :beginning AND job_id IS NOT NULL{where} GROUP BY job_id",
                {"length": len(priced_by), "beginning": priced_by, **values},
            ).fetchall()
    finally:
        database.close()
    return {job_id: sql.as_decimal(cost) or Decimal(0) for job_id, cost in found}


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


def moment(text: str, now: datetime, option: str = "--since") -> datetime:
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
            f"{option} {text!r} is neither a duration nor a time",
            "give a duration such as 30m, 24h or 7d, or ISO 8601 such as 2026-01-31 or 2026-01-31T09:00:00Z",
        ) from None


def _database(log: Path | sql.Database) -> sql.Database:
    if isinstance(log, sql.Database):
        return log
    # Without a log nothing is made: an empty database in memory gives the empty report.
    return sql.open(sql.sqlite_url(log)) if log.exists() else sql.in_memory()


def _usage(database: sql.Database, log: str, by: Sequence[str], since: datetime | None) -> UsageReport:
    columns = {name: column for dimension in by for name, column in DIMENSIONS[dimension].items()}
    keys = {name: column(database.expressions) for name, column in columns.items()}
    # One snapshot: groups and totals are of the same moment.
    with database.snapshot() as cursor:
        groups = _measured(database, cursor, keys, since)
        (totals,) = _measured(database, cursor, {}, since)
        models = _unpriced_models(cursor, since) if totals["unpriced"] else []
    groups.sort(
        key=lambda group: (-group["requests"], *((group[name] is not None, group[name] or "") for name in keys))
    )
    return UsageReport(log, since, tuple(by), tuple(groups), totals, tuple(models))


def _measured(
    database: sql.Database, cursor: sql.Cursor, keys: Mapping[str, str], since: datetime | None
) -> list[dict[str, Any]]:
    """The groups by `keys` (names and expressions; without any, all rows are one)."""
    of = database.expressions
    source = "requests"
    if "tag" in keys:
        source += f" CROSS JOIN {of.tag_pairs('tags')}"
    # Without a condition that all rows keep, SQLite reads the table in order instead of through the index.
    where, values = ("time >= :since", {"since": since}) if since else ("TRUE", {})
    grouping = f"GROUP BY {', '.join(keys.values())}" if keys else ""
    percentiles = of.nearest_ranks("total_seconds", list(_PERCENTILES.values()))
    expressions = {**keys, **_COUNTS, "cost_usd": of.decimal_sum(_SERVED_COST), "percentiles": percentiles}
    selected = ", ".join(f"{expression} AS {name}" for name, expression in expressions.items())
    cursor.execute(f"SELECT {selected} FROM {source} WHERE {where} {grouping}", values)  # noqa: S608
    return [_as_group(found) for found in cursor.documents()]


def _as_group(found: dict[str, Any]) -> dict[str, Any]:
    cost = sql.as_decimal(found.pop("cost_usd"))
    percentiles: Sequence[float | None] = sql.as_numbers(found.pop("percentiles")) or [None] * len(_PERCENTILES)
    # PostgreSQL's sums of integers are decimals.
    whole = {name: int(value) if isinstance(value, Decimal) else value for name, value in found.items()}
    text = None if cost is None else format(cost, "f")
    return {**whole, "cost_usd": text, **dict(zip(_PERCENTILES, percentiles, strict=True))}


def _unpriced_models(cursor: sql.Cursor, since: datetime | None) -> list[dict[str, Any]]:
    where, values = (" AND time >= :since", {"since": since}) if since else ("", {})
    cursor.execute(
        "SELECT model, COUNT(*) AS requests FROM requests WHERE cost_usd IS NULL"  # noqa: S608
        f"{where} GROUP BY model ORDER BY 2 DESC, 1",
        values,
    )
    return cursor.documents()

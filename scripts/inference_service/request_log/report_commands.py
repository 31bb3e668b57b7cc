"""What usage_report.py does: the report, the comparison with an invoice, and forgetting."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from inference_service import output, paths, sql
from inference_service.errors import BadInput, ToolError
from inference_service.request_log import rendering, report

_DATABASE_ENV = "TAO_GATEWAY_DATABASE"


def run(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> output.Document | None:
    """The document of one command line; None once it has been printed in the format that was asked for."""
    log = _log(arguments.database, environ)
    if arguments.command == "reconcile-invoice":
        return _reconciled(arguments, log)
    if arguments.command == "forget":
        return _forgotten(arguments, log)
    return _reported(arguments, log)


def render(document: output.Document) -> None:
    """A document for a person at a terminal."""
    if "groups" in document:
        rendering.table(document, sys.stdout)
    elif "lines" in document:
        rendering.comparison(document, sys.stdout)
    else:
        verb = "would be forgotten" if document["dry_run"] else "are forgotten"
        print(f"{document['requests']} requests and {document['bodies']} bodies {verb}")


def _log(database: str | None, environ: Mapping[str, str]) -> Path | sql.Database:
    """The log: a database, or a SQLite file that there may not be yet."""
    if database is not None:
        return sql.open(sql.refuse_password(database, "--database", _DATABASE_ENV))
    if environ.get(_DATABASE_ENV):
        return sql.open(environ[_DATABASE_ENV])
    return paths.request_log_file(environ)


def _reported(arguments: argparse.Namespace, log: Path | sql.Database) -> output.Document | None:
    if arguments.json and arguments.format in ("table", "csv"):
        raise BadInput("usage", f"--json and --format {arguments.format} exclude each other", "give one of them")
    since = _moment(arguments.since, "--since")
    now = datetime.now(timezone.utc)
    usage = report.usage(log, report.dimensions(arguments.by), since).document()
    document = {**usage, "gpus": _gpus(log, since, now)}
    if not document["totals"]["requests"]:
        output.note(f"no requests are logged in {document['log']}" + (f" since {document['since']}" if since else ""))
    if arguments.format == "table":
        rendering.table(document, sys.stdout)
    elif arguments.format == "csv":
        sys.stdout.write(rendering.as_csv(document))
    elif arguments.format == "json":
        output.print_line(document)
    else:
        return document
    return None


def _gpus(log: Path | sql.Database, since: datetime | None, until: datetime) -> list[dict[str, Any]]:
    """What the services' GPUs cost, were charged and stood idle. That it cannot be known costs nobody the report."""
    from inference_service import gpu_cost, pricing
    from inference_service.registry import Registry

    try:
        entries = list(Registry().read().services.values())
        lines = gpu_cost.gpu_lines(entries, report.charged(log, pricing.PRICED_BY, since), since, until)
    except ToolError as error:
        output.note(f"what GPUs cost is not known: {error}")
        return []
    money = ("cost_usd", "charged_usd", "idle_usd")
    return [
        {**line, **{name: None if line[name] is None else format(line[name], "f") for name in money}} for line in lines
    ]


def _reconciled(arguments: argparse.Namespace, log: Path | sql.Database) -> output.Document:
    from inference_service.request_log import invoice, reconciliation

    allowed = reconciliation.tolerance(arguments.tolerance)
    vendor = invoice.vendor(arguments.vendor)
    read = invoice.read(Path(arguments.file), vendor)
    return reconciliation.compare(_existing(log), read, vendor, allowed)


def _forgotten(arguments: argparse.Namespace, log: Path | sql.Database) -> Mapping[str, Any]:
    from inference_service.request_log import retention

    rows_before = _moment(arguments.older_than, "--older-than")
    bodies_before = _moment(arguments.bodies_older_than, "--bodies-older-than")
    if rows_before is None and bodies_before is None:
        raise BadInput(
            "usage", "nothing is said of what to forget", "give --older-than 90d, --bodies-older-than 7d or both"
        )
    return retention.forget(_existing(log), rows_before, bodies_before, dry_run=arguments.dry_run)


def _existing(log: Path | sql.Database) -> sql.Database:
    if isinstance(log, sql.Database):
        return log
    return sql.open(sql.sqlite_url(log)) if log.exists() else sql.in_memory()


def _moment(text: str | None, option: str) -> datetime | None:
    return None if text is None else report.moment(text, datetime.now(timezone.utc), option)

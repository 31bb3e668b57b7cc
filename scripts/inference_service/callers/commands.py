"""What callers.py does: each command changes one caller, or shows them all."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

from inference_service import paths, sql
from inference_service.callers import keys, money, store
from inference_service.callers.caller import Limits
from inference_service.callers.store import StoredCaller
from inference_service.errors import BadInput
from inference_service.sql import Database
from inference_service.upkeep import duration

DATABASE_ENV = "TAO_GATEWAY_DATABASE"
NO_LIMIT = "none"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
# What the gateway's rows call those who have no key of ours.
_TAKEN = ("anonymous", "owner")
_LONGEST_LABEL = 64
_LONGEST_MODEL = 256
_MOST_MODELS = 100
_MOST = 10**12
_MOST_USD = 10**9
_LONGEST_GRACE_DAYS = 90

# The options of limits, each with the field of Limits that it sets.
RATES = {"requests_per_minute": "requests_per_minute", "tokens_per_minute": "tokens_per_minute"}
BUDGETS = {"usd_per_day": "nano_usd_per_day", "usd_per_month": "nano_usd_per_month"}

Document = dict[str, Any]


def run(arguments: argparse.Namespace) -> Document:
    """The callers that the command was about, as they are now, and the key of a new one.

    Raises:
        BadInput: a value is refused, or there is no such caller (or one already); nothing was changed.
        ToolError: the database cannot be used.
    """
    command = _COMMANDS[arguments.command]
    # Everything that can be wrong with the command line is found before the database is opened, and maybe made.
    act = command(arguments)
    database = _database(arguments.database, os.environ)
    try:
        return {"database": database.shown, **act(database)}
    finally:
        database.close()


def _database(option: str | None, environ: Mapping[str, str]) -> Database:
    if option is not None:
        return sql.open(sql.refuse_password(option, "--database", DATABASE_ENV))
    return sql.open(environ.get(DATABASE_ENV) or sql.sqlite_url(paths.request_log_file(environ)))


def _add(arguments: argparse.Namespace) -> Callable[[Database], Document]:
    changes = _changes(arguments)
    models = changes.pop("allowed_models", None)
    new = store.NewCaller(
        _name(arguments.name),
        _label("--team", arguments.team),
        _label("--project", arguments.project),
        arguments.admin,
        models,
        Limits(**changes),
    )
    return lambda database: _with_key(*store.add(database, new))


def _list(_arguments: argparse.Namespace) -> Callable[[Database], Document]:
    def act(database: Database) -> Document:
        with database.snapshot() as cursor:
            return {"callers": [shown(stored) for stored in store.read(cursor)]}

    return act


def _rotate(arguments: argparse.Namespace) -> Callable[[Database], Document]:
    name, grace = arguments.name, 0
    if arguments.grace is not None:
        grace = int(duration(arguments.grace))
        if grace > _LONGEST_GRACE_DAYS * 86_400:
            raise BadInput(
                "bad_duration",
                f"--grace {arguments.grace} is longer than {_LONGEST_GRACE_DAYS} days",
                "give less: an old key that still works is one that can be stolen",
            )
    return lambda database: _with_key(*store.rotate(database, name, grace))


def _limits(arguments: argparse.Namespace) -> Callable[[Database], Document]:
    name, changes = arguments.name, _changes(arguments)
    if not changes:
        raise BadInput(
            "usage", "no limit is named", f"name one, e.g.: callers.py limits {name} --usd-per-day 5; list shows them"
        )
    return lambda database: {"callers": [shown(store.change_limits(database, name, changes))]}


def _of(change: Callable[[Database, str], StoredCaller]) -> Callable[[argparse.Namespace], Any]:
    def command(arguments: argparse.Namespace) -> Callable[[Database], Document]:
        name = arguments.name
        return lambda database: {"callers": [shown(change(database, name))]}

    return command


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], Callable[[Database], Document]]] = {
    "add": _add,
    "list": _list,
    "rotate": _rotate,
    "disable": _of(store.disable),
    "enable": _of(store.enable),
    "remove": _of(store.remove),
    "limits": _limits,
}


def shown(stored: StoredCaller) -> Document:
    """A caller as JSON: times in UTC, money as exact decimals of USD; of its keys their ids."""
    caller = stored.caller
    limits = {name: getattr(caller.limits, field) for name, field in RATES.items()}
    for name, field in BUDGETS.items():
        nano = getattr(caller.limits, field)
        limits[name] = None if nano is None else money.as_usd(nano)
    return {
        "name": caller.name,
        "id": caller.id,
        "team": caller.team,
        "project": caller.project,
        "admin": caller.admin,
        "disabled": stored.disabled,
        "allowed_models": None if caller.allowed_models is None else sorted(caller.allowed_models),
        "limits": limits,
        "keys": [
            {"key_id": key.key_id, "created_at": _moment(key.created_at), "expires_at": _moment(key.expires_at)}
            for key in stored.keys
        ],
        "created_at": _moment(stored.created_at),
    }


def _with_key(stored: StoredCaller, key: keys.NewKey) -> Document:
    return {"callers": [shown(stored)], "api_key": key.api_key}


def _moment(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise BadInput(
            "invalid_name",
            f"{text!r} cannot be a caller's name",
            "begin with a letter or digit, go on with those and . _ @ + - up to 64 characters",
        )
    if text.lower() in _TAKEN:
        raise BadInput("invalid_name", f"{text!r} means somebody else in the request log", "choose another name")
    return text


def _label(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    if not text.strip() or len(text) > _LONGEST_LABEL or not text.isprintable():
        raise BadInput(
            "invalid_label", f"{option} {text!r} cannot be shown in a report", f"give up to {_LONGEST_LABEL} characters"
        )
    return text.strip()


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of Limits, and `allowed_models`, that the command line sets."""
    changes: dict[str, Any] = {}
    for option, field in RATES.items():
        text = getattr(arguments, option)
        if text is not None:
            changes[field] = None if text == NO_LIMIT else _count(option, text)
    for option, field in BUDGETS.items():
        text = getattr(arguments, option)
        if text is not None:
            changes[field] = None if text == NO_LIMIT else _amount(option, text)
    if arguments.allow_model and arguments.allow_any_model:
        raise BadInput("usage", "--allow-model and --allow-any-model exclude each other", "give one of them")
    if arguments.allow_model:
        changes["allowed_models"] = frozenset(map(_model, arguments.allow_model))
        if len(changes["allowed_models"]) > _MOST_MODELS:
            raise BadInput(
                "too_many_models", f"more than {_MOST_MODELS} models are named", "allow any: --allow-any-model"
            )
    elif arguments.allow_any_model:
        changes["allowed_models"] = None
    return changes


def _count(option: str, text: str) -> int:
    # int() takes more than a person means by a number: 1_000, blanks, other scripts' digits.
    if re.fullmatch("[0-9]{1,13}", text, re.ASCII) and 1 <= int(text) <= _MOST:
        return int(text)
    raise _bad_limit(option, text, f"a whole number from 1 to {_MOST}")


def _amount(option: str, text: str) -> int:
    try:
        usd = Decimal(text) if re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,9})?", text, re.ASCII) else None
    except InvalidOperation:
        usd = None
    if usd is None or usd > _MOST_USD:
        raise _bad_limit(option, text, f"an amount in USD like 12.50, up to {_MOST_USD} and to nine decimals")
    return money.nano_usd(usd)


def _bad_limit(option: str, text: str, form: str) -> BadInput:
    name = f"--{option.replace('_', '-')}"
    return BadInput("invalid_limit", f"{name} {text!r} is no limit", f"give {form}, or {NO_LIMIT} to take it away")


def _model(text: str) -> str:
    if not text or len(text) > _LONGEST_MODEL or not text.isprintable() or text != text.strip():
        raise BadInput(
            "invalid_model", f"--allow-model {text!r} names no model", "give a model id, a job_id or a network arch"
        )
    return text

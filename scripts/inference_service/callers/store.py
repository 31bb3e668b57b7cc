"""Callers and their keys in the database. Every change counts the version up, so that gateways notice it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service.callers import keys
from inference_service.callers.caller import NO_LIMITS, Caller, Limits
from inference_service.errors import BadInput
from inference_service.sql import Conflict, Cursor, Database


@dataclass(frozen=True)
class StoredKey:
    """What is kept of a key. `expires_at` (seconds since 1970) is set when another one has replaced it."""

    key_id: str
    caller_id: str
    digest: str
    created_at: int
    expires_at: int | None


@dataclass(frozen=True)
class StoredCaller:
    """A caller with its keys, oldest first."""

    caller: Caller
    disabled: bool
    created_at: int
    keys: tuple[StoredKey, ...]


@dataclass(frozen=True)
class NewCaller:
    """What a caller is made of; the id and the key are the store's business."""

    name: str
    team: str | None = None
    project: str | None = None
    admin: bool = False
    allowed_models: frozenset[str] | None = None
    limits: Limits = NO_LIMITS


_COLUMNS = (
    "id, name, team, project, admin, disabled, allowed_models,"
    " requests_per_minute, tokens_per_minute, nano_usd_per_day, nano_usd_per_month, created_at"
)
_KEY_COLUMNS = "key_id, caller_id, digest, created_at, expires_at"
_OLDEST_FIRST = "created_at, expires_at IS NULL, expires_at, key_id"


def version(cursor: Cursor) -> int:
    """A number that is another one after every change of a caller or a key."""
    (number,) = next(iter(cursor.execute("SELECT version FROM callers_version")))
    return int(number)


def read(cursor: Cursor) -> list[StoredCaller]:
    """All callers by name."""
    of_caller: dict[str, list[StoredKey]] = {}
    for row in cursor.execute(
        f"SELECT {_KEY_COLUMNS} FROM caller_keys ORDER BY {_OLDEST_FIRST}"  # noqa: S608
    ):
        of_caller.setdefault(row[1], []).append(StoredKey(*row))
    rows = cursor.execute(f"SELECT {_COLUMNS} FROM callers ORDER BY name").fetchall()  # noqa: S608
    return [_stored(row, tuple(of_caller.get(row[0], ()))) for row in rows]


def add(database: Database, new: NewCaller) -> tuple[StoredCaller, keys.NewKey]:
    """Make a caller and its first key; of two that are made at once with one name, one is.

    Raises:
        BadInput: there is a caller of that name.
    """
    key = keys.make()
    now = int(time.time())
    caller_id = f"c_{secrets.token_hex(8)}"
    caller = {
        "id": caller_id,
        "name": new.name,
        "team": new.team,
        "project": new.project,
        "admin": int(new.admin),
        "created_at": now,
        **_models_and_limits(new.allowed_models, new.limits),
    }
    try:
        with database.transaction() as cursor:
            cursor.execute(
                f"""
                INSERT INTO callers ({_COLUMNS}) VALUES (:id, :name, :team, :project, :admin, 0, :allowed_models,
                    :requests_per_minute, :tokens_per_minute, :nano_usd_per_day, :nano_usd_per_month, :created_at)
                """,  # noqa: S608
                caller,
            )
            _insert_key(cursor, caller_id, key, now)
            _changed(cursor)
            return _found(cursor, new.name), key
    except Conflict:
        raise BadInput(
            "caller_exists",
            f"there is a caller named {new.name!r} already",
            f"choose another name, or give that one a new key: callers.py rotate {new.name}",
        ) from None


def rotate(database: Database, name: str, grace_seconds: int) -> tuple[StoredCaller, keys.NewKey]:
    """Give a caller a new key; its older ones work for `grace_seconds` more, those that already expire not longer
    than before.

    Raises:
        BadInput: there is no caller of that name.
    """
    key = keys.make()
    now = int(time.time())
    with database.transaction() as cursor:
        found = _locked(cursor, database, name)
        values = {"caller_id": found.caller.id, "until": now + grace_seconds, "now": now}
        if grace_seconds:
            cursor.execute(
                "UPDATE caller_keys SET expires_at = :until"
                " WHERE caller_id = :caller_id AND (expires_at IS NULL OR expires_at > :until)",
                values,
            )
            cursor.execute("DELETE FROM caller_keys WHERE caller_id = :caller_id AND expires_at <= :now", values)
        else:
            cursor.execute("DELETE FROM caller_keys WHERE caller_id = :caller_id", values)
        _insert_key(cursor, found.caller.id, key, now)
        _changed(cursor)
        return _found(cursor, name), key


def disable(database: Database, name: str) -> StoredCaller:
    """Let a caller's keys be refused.

    Raises:
        BadInput: there is no caller of that name.
    """
    return _set_disabled(database, name, True)


def enable(database: Database, name: str) -> StoredCaller:
    """Let a disabled caller's keys be taken again.

    Raises:
        BadInput: there is no caller of that name.
    """
    return _set_disabled(database, name, False)


def _set_disabled(database: Database, name: str, disabled: bool) -> StoredCaller:
    with database.transaction() as cursor:
        found = _locked(cursor, database, name)
        cursor.execute(
            "UPDATE callers SET disabled = :disabled WHERE id = :id", {"id": found.caller.id, "disabled": int(disabled)}
        )
        _changed(cursor)
        return _found(cursor, name)


def remove(database: Database, name: str) -> StoredCaller:
    """Delete a caller and its keys, what it was. The rows of its requests stay.

    Raises:
        BadInput: there is no caller of that name.
    """
    with database.transaction() as cursor:
        found = _locked(cursor, database, name)
        cursor.execute("DELETE FROM caller_keys WHERE caller_id = :id", {"id": found.caller.id})
        cursor.execute("DELETE FROM callers WHERE id = :id", {"id": found.caller.id})
        _changed(cursor)
        return found


def change_limits(database: Database, name: str, changes: Mapping[str, int | frozenset[str] | None]) -> StoredCaller:
    """Set some of the limits (the fields of `Limits`) or `allowed_models`; None takes a limit away.

    Raises:
        BadInput: there is no caller of that name.
    """
    with database.transaction() as cursor:
        found = _locked(cursor, database, name).caller
        merged: dict[str, Any] = {**vars(found.limits), "allowed_models": found.allowed_models, **changes}
        models = merged.pop("allowed_models")
        cursor.execute(
            """
            UPDATE callers SET allowed_models = :allowed_models, requests_per_minute = :requests_per_minute,
                tokens_per_minute = :tokens_per_minute, nano_usd_per_day = :nano_usd_per_day,
                nano_usd_per_month = :nano_usd_per_month
            WHERE id = :id
            """,
            {"id": found.id, **_models_and_limits(models, Limits(**merged))},
        )
        _changed(cursor)
        return _found(cursor, name)


def _locked(cursor: Cursor, database: Database, name: str) -> StoredCaller:
    # Two changes of one caller at once: the second one sees what the first one made of it.
    cursor.execute(f"SELECT id FROM callers WHERE name = :name {database.expressions.for_update}", {"name": name})  # noqa: S608
    cursor.fetchall()
    return _found(cursor, name)


def _found(cursor: Cursor, name: str) -> StoredCaller:
    row = cursor.execute(f"SELECT {_COLUMNS} FROM callers WHERE name = :name", {"name": name}).fetchone()  # noqa: S608
    if row is None:
        raise BadInput("unknown_caller", f"there is no caller named {name!r}", "callers.py list shows them all")
    stored = cursor.execute(
        f"SELECT {_KEY_COLUMNS} FROM caller_keys WHERE caller_id = :id ORDER BY {_OLDEST_FIRST}",  # noqa: S608
        {"id": row[0]},
    ).fetchall()
    return _stored(row, tuple(StoredKey(*key) for key in stored))


def _insert_key(cursor: Cursor, caller_id: str, key: keys.NewKey, now: int) -> None:
    cursor.execute(
        "INSERT INTO caller_keys (key_id, caller_id, digest, created_at) VALUES (:key_id, :caller_id, :digest, :now)",
        {"key_id": key.key_id, "caller_id": caller_id, "digest": key.digest, "now": now},
    )


def _changed(cursor: Cursor) -> None:
    cursor.execute("UPDATE callers_version SET version = version + 1")


def _models_and_limits(models: frozenset[str] | None, limits: Limits) -> dict[str, str | int | None]:
    return {"allowed_models": None if models is None else json.dumps(sorted(models)), **vars(limits)}


def _stored(row: tuple[Any, ...], stored_keys: tuple[StoredKey, ...]) -> StoredCaller:
    id, name, team, project, admin, disabled, models, *limits, created_at = row
    allowed = None if models is None else frozenset(json.loads(models))
    caller = Caller(id, name, team, project, bool(admin), allowed, Limits(*limits))
    return StoredCaller(caller, bool(disabled), created_at, stored_keys)

"""Reads a reference file and holds it against its JSON Schema; what breaks a rule is named by file, key and rule.

Validation costs more than all of a script's own work (the import of jsonschema alone takes 80 ms), and the files change
only with an edit. So a file's digest, together with its schema's, is noted in the user's cache once it has passed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_service import paths
from inference_service.errors import ToolError

_RESTORE = "restore the file from the skill's own copy"


def read_yaml(file: Path) -> Any:
    """The YAML document in `file`.

    Raises:
        ToolError: it cannot be read or does not parse; the message has the line.
    """
    import yaml

    text = _read(file)
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, for one.
        raise ToolError(
            "reference_malformed", f"{file} is not YAML: {' '.join(str(error).split())}", _RESTORE
        ) from error


def read_json(file: Path) -> Any:
    """The JSON document in `file`.

    Raises:
        ToolError: it cannot be read or does not parse; the message has the line.
    """
    text = _read(file)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ToolError("reference_malformed", f"{file} is not JSON: {error}", _RESTORE) from error


def validated(file: Path, document: Any, schema: str | None = None) -> Mapping[str, Any]:
    """The document, when it keeps the schema `references/schemas/<schema>.schema.json` (default: the file's own name).

    Raises:
        ToolError: it breaks the schema; the message names the file, the key and the rule.
    """
    schema_text = _read(paths.SCHEMAS / f"{schema or file.stem}.schema.json")
    _refuse_keys_that_are_no_text(document, str(file))
    stamp = _stamp(json.dumps(document, sort_keys=True, default=repr).encode(), schema_text)
    if not _noted(stamp):
        check(document, json.loads(schema_text), str(file))
        _note(stamp)
    result: Mapping[str, Any] = document
    return result


def check(document: Any, schema: Mapping[str, Any], name: str) -> None:
    """Hold any document against a schema; `name` is what the message calls it.

    Raises:
        ToolError: the first rule that is broken, with its key.
    """
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if error is not None:
        key = ".".join(str(part) for part in error.absolute_path) or "(top level)"
        raise _broken(name, key, error.message, str(error.validator))


def _broken(name: str, key: str, message: str, rule: str) -> ToolError:
    return ToolError(
        "schema_broken", f"{name}: {key}: {message} (rule: {rule})", "correct that key", file=name, key=key
    )


def _refuse_keys_that_are_no_text(document: Any, name: str, above: str = "") -> None:
    # YAML reads an unquoted 200, yes or 2026-01-01 as a key of another type, which no JSON Schema can speak of.
    if isinstance(document, dict):
        for key, value in document.items():
            path = f"{above}.{key}" if above else str(key)
            if not isinstance(key, str):
                raise _broken(name, path, f"{key!r} is not text: put it in quotes", "type")
            _refuse_keys_that_are_no_text(value, name, path)
    elif isinstance(document, list):
        for index, value in enumerate(document):
            _refuse_keys_that_are_no_text(value, name, f"{above}.{index}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ToolError("reference_unreadable", f"cannot read {file}: {error.strerror}", _RESTORE) from error


def _stamp(document: bytes, schema: bytes) -> Path:
    return paths.cache_directory() / "validated" / hashlib.sha256(document + b"\0" + schema).hexdigest()


def _noted(stamp: Path) -> bool:
    try:
        return stamp.exists()
    except OSError:  # A cache folder that may not be entered.
        return False


def _note(stamp: Path) -> None:
    # The name says it all and the file is empty, so that one made halfway, or by two processes at once, is right too.
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    except OSError:
        pass  # No cache, then: the file is validated again next time.

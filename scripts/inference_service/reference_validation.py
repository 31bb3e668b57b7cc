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


def read_yaml(file: Path) -> Any:
    """The YAML document in `file`.

    Raises:
        ToolError: it cannot be read or does not parse; the message has the line.
    """
    import yaml

    try:
        return yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except OSError as error:
        raise ToolError("reference_unreadable", f"cannot read {file}: {error.strerror}", _RESTORE) from error
    except yaml.YAMLError as error:
        raise ToolError("reference_malformed", f"{file} is not YAML: {' '.join(str(error).split())}", _RESTORE) from error


def validated(file: Path, document: Any, schema: str | None = None) -> Mapping[str, Any]:
    """The document, when it keeps the schema `references/schemas/<schema>.schema.json` (default: the file's own name).

    Raises:
        ToolError: it breaks the schema; the message names the file, the key and the rule.
    """
    schema_file = paths.SCHEMAS / f"{schema or file.stem}.schema.json"
    schema_text = schema_file.read_bytes()
    stamp = _stamp(json.dumps(document, sort_keys=True, default=str).encode(), schema_text)
    if not stamp.exists():
        check(document, json.loads(schema_text), str(file))
        _note(stamp)
    return document  # type: ignore[no-any-return]


def check(document: Any, schema: Mapping[str, Any], name: str) -> None:
    """Hold any document against a schema; `name` is what the message calls it.

    Raises:
        ToolError: the first rule that is broken, with its key.
    """
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if error is not None:
        key = ".".join(str(part) for part in error.absolute_path) or "(top level)"
        raise ToolError(
            "schema_broken", f"{name}: {key}: {error.message} (rule: {error.validator})", "correct that key", file=name, key=key
        )


_RESTORE = "restore the file from the skill's own copy"


def _stamp(document: bytes, schema: bytes) -> Path:
    return paths.cache_directory() / "validated" / hashlib.sha256(document + b"\0" + schema).hexdigest()


def _note(stamp: Path) -> None:
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    except OSError:
        pass  # No cache, then: the file is validated again next time.

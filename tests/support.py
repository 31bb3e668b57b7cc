"""What tests share: running a script as a user would, waiting with a deadline, and saying which engine is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import pytest

SKILL = Path(__file__).resolve().parent.parent
SCRIPTS = SKILL / "scripts"
SCHEMAS = SKILL / "references" / "schemas"

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a script left: its exit status, its one JSON document (None for a stream), and both outputs as text."""

    status: int
    document: Any
    stdout: str
    stderr: str


def run_script(
    name: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    expect: int | None = 0,
    timeout: float = 120,
    cwd: Path | None = None,
) -> Result:
    """Run scripts/<name>.py with its output piped; its document is held against the script's output schema.

    `env` is added to this process's environment. `expect` is the exit status it must have (None: any).
    """
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments],
        env={**os.environ, **(env or {})},
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
    )
    told = f"{name}.py {' '.join(arguments)} -> {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
    if expect is not None:
        assert done.returncode == expect, told
    document = one_document(done.stdout)
    if document is not None:
        check_output(name, done.returncode, document)
    return Result(done.returncode, document, done.stdout, done.stderr)


def one_document(text: str) -> Any:
    """The JSON document that is the whole of `text`, or None when it is a stream, a listing or empty."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def check_output(script: str, status: int, document: Any) -> None:
    """Hold a document against what the contract says for that exit status."""
    schema = {0: f"{script}.output", 3: "needs.output"}.get(status, "error.output")
    text = (SCHEMAS / f"{schema}.schema.json").read_text(encoding="utf-8")
    jsonschema.Draft202012Validator(json.loads(text)).validate(document)


def eventually(probe: Callable[[], T | None], timeout: float = 30, every: float = 0.05) -> T:
    """The first value of `probe` that is not None or False; fails when there is none before the deadline (seconds)."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing within {timeout} s from {probe}")
        time.sleep(every)


def need_engine(name: str, available: bool, why_not: str) -> None:
    """Skip the test where `name` is not available; where REQUIRE_E2E names it, fail instead."""
    if available:
        return
    if name in os.environ.get("REQUIRE_E2E", "").replace(",", " ").split():
        pytest.fail(f"REQUIRE_E2E names {name}, but {why_not}")
    pytest.skip(f"{name}: {why_not}")

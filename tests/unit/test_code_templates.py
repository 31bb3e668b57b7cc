"""Every command of references/code-templates.yaml is one that its script takes."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_service import paths, platforms, reference_validation, references

FILE = paths.REFERENCES / "code-templates.yaml"
TEMPLATES = reference_validation.read_yaml(FILE)


def commands(templates: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(templates, str):
        yield key, templates
    else:
        for name, value in templates.items():
            yield from commands(value, f"{key}.{name}" if key else name)


def parser_of(script: Path, argv: list[str]) -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = module.parser
    made: argparse.ArgumentParser = make(argv) if inspect.signature(make).parameters else make()
    return made


def test_the_file_keeps_its_schema() -> None:
    reference_validation.validated(FILE, TEMPLATES)


def test_every_arch_and_every_platform_has_its_templates() -> None:
    assert set(TEMPLATES["job_payload_builder"]) == set(references.load().archs)
    for key in ("preflight", "start", "registry_write"):
        assert set(TEMPLATES[key]) == set(platforms.names())


@pytest.mark.parametrize(("key", "command"), list(commands(TEMPLATES)))
def test_its_script_takes_every_option_of_the_command(key: str, command: str) -> None:
    python, script, *argv = shlex.split(command)
    assert python == "python"
    parser_of(paths.SKILL / script, argv).parse_args(argv)

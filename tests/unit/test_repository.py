"""What holds for the repository as a whole: its files' sizes, names, words and manifests."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from support import SCHEMAS, SCRIPTS, SKILL

import inference_service

MICROSERVICES = SCRIPTS / "inference_service" / "microservices"
# The marker is split so that this file does not contain it.
WORKPLACE_PATHS = ("/" + "work/", "/" + "farm/")


def tracked_files() -> list[Path]:
    """The repository's own files: git's where this is a checkout, else all that are not hidden or built."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=SKILL, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [file for name in listed.stdout.split("\0") if name and (file := SKILL / name).is_file()]
    built = re.compile(r"/(\.venv[^/]*|__pycache__|build|wheels|\.[a-z]+_cache|[^/]+\.egg-info)/")
    return [file for file in SKILL.rglob("*") if file.is_file() and not built.search(f"/{file.relative_to(SKILL)}")]


def python_files() -> list[Path]:
    return [file for file in tracked_files() if file.suffix == ".py"]


def code_lines(file: Path) -> int:
    lines = file.read_text(encoding="utf-8").splitlines()
    return sum(1 for line in lines if line.strip() and not line.lstrip().startswith("#"))


def test_no_file_has_more_than_500_lines_of_code() -> None:
    assert {file.name: code_lines(file) for file in python_files() if code_lines(file) > 500} == {}


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda script: script.stem)
def test_every_script_has_a_valid_output_schema(script: Path) -> None:
    schema = json.loads((SCHEMAS / f"{script.stem}.output.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not jsonschema.Draft202012Validator(schema).is_valid({}), "it requires nothing"


def test_platform_is_the_standard_librarys_from_the_repository_too() -> None:
    assert list((SKILL / "platform").rglob("__init__.py")) == []
    program = "import platform; print(platform.python_version())"
    found = subprocess.run([sys.executable, "-c", program], cwd=SKILL, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ".".join(map(str, sys.version_info[:3]))


def names_in(file: Path) -> Iterator[tuple[int, str]]:
    """Every string and identifier of a Python file that is not a docstring, with its line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


def test_no_network_arch_is_named_in_python_outside_its_own_microservice() -> None:
    service = yaml.safe_load((SKILL / "references" / "service.yaml").read_text(encoding="utf-8"))
    archs = service["valid_network_arch_config_basenames"]
    spellings = {re.sub(r"\W", "[-_.]?", arch) for arch in archs}
    named = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(sorted(spellings))})(?![A-Za-z0-9])", re.IGNORECASE)
    # The gateway is the microservice of an arch, too.
    exempt = (MICROSERVICES, MICROSERVICES.parent / "gateway", SKILL / "tests", SKILL / "bench")
    found = [
        f"{file.relative_to(SKILL)}:{line}: {text!r}"
        for file in python_files()
        if not any(file.is_relative_to(folder) for folder in exempt)
        for line, text in names_in(file)
        if named.search(text)
    ]
    assert found == []


def test_no_file_speaks_of_where_it_was_written() -> None:
    found = []
    for file in tracked_files():
        text = file.read_text(encoding="utf-8", errors="ignore")
        found += [f"{file.relative_to(SKILL)}: {path}" for path in WORKPLACE_PATHS if path in text]
    assert found == []


def manifest(name: str) -> dict[str, object]:
    document = json.loads((SKILL / ".claude-plugin" / name).read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


KEBAB_CASE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def test_the_plugin_manifest_has_what_claude_code_requires_and_its_paths_exist() -> None:
    plugin = manifest("plugin.json")
    assert isinstance(plugin["name"], str)
    assert KEBAB_CASE.fullmatch(plugin["name"])
    assert isinstance(plugin["description"], str)
    assert isinstance(plugin["author"], dict)
    assert plugin["author"]["name"]
    assert isinstance(plugin["skills"], list)
    for path in plugin["skills"]:
        assert path.startswith("./")
        assert (SKILL / path / "SKILL.md").is_file()


def test_the_marketplace_offers_this_plugin_from_this_repository() -> None:
    marketplace = manifest("marketplace.json")
    assert isinstance(marketplace["name"], str)
    assert KEBAB_CASE.fullmatch(marketplace["name"])
    assert isinstance(marketplace["owner"], dict)
    assert marketplace["owner"]["name"]
    assert isinstance(marketplace["plugins"], list)
    (offered,) = marketplace["plugins"]
    assert offered["name"] == manifest("plugin.json")["name"]
    assert offered["source"].startswith("./")
    assert (SKILL / offered["source"] / ".claude-plugin" / "plugin.json").is_file()
    # Claude Code takes plugin.json's version; a second one here could only disagree with it.
    assert "version" not in offered


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    version = inference_service.__version__
    _, frontmatter, _ = (SKILL / "SKILL.md").read_text(encoding="utf-8").split("---\n", 2)
    pins = yaml.safe_load((SKILL / "versions.yaml").read_text(encoding="utf-8"))["images"]["inference_service"]
    changelog = (SKILL / "CHANGELOG.md").read_text(encoding="utf-8")
    written = {
        "plugin.json": manifest("plugin.json")["version"],
        "SKILL.md": yaml.safe_load(frontmatter)["metadata"]["version"],
        **{name: uri.rsplit(":", 1)[1] for name, uri in pins.items()},
    }
    assert written == dict.fromkeys(written, version)
    assert f"## [{version}]" in changelog

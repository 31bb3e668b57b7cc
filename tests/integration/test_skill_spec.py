"""The Agent Skills specification, held against the skill as a user would copy it: in a folder of the skill's name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import SKILL, need_engine

# agentskills.io/specification, "Frontmatter"
SPECIFIED_FIELDS = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
PLATFORMS = sorted(file.parent.name for file in SKILL.glob("platform/*/SKILL.md"))
SKILLS = [Path(), *(Path("platform", name) for name in PLATFORMS)]


def frontmatter(skill: Path) -> dict[str, Any]:
    start, fields, _ = (skill / "SKILL.md").read_text(encoding="utf-8").split("---\n", 2)
    assert start == ""
    parsed = yaml.safe_load(fields)
    assert isinstance(parsed, dict)
    return parsed


@pytest.fixture(scope="session")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files of this checkout (or of a copy without git, all of it), in a folder with the skill's name."""
    target = tmp_path_factory.mktemp("skills") / "tao-run-inference-service"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=SKILL, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        shutil.copytree(SKILL, target, ignore=shutil.ignore_patterns(".venv*", "__pycache__", ".*_cache", "wheels"))
        return target
    for name in filter(None, listed.stdout.split("\0")):
        if (SKILL / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SKILL / name, target / name)
    return target


def test_there_is_a_page_for_every_platform() -> None:
    assert sorted(file.parent.name for file in SKILL.glob("platform/*/driver.py")) == PLATFORMS
    assert {"local-docker", "local-process"} <= set(PLATFORMS)


@pytest.mark.parametrize("skill", SKILLS, ids=str)
def test_the_reference_validator_accepts_the_skill(skill: Path, copied: Path) -> None:
    folder = copied / skill
    # The validator asks that a skill's name be its folder's; a platform's page may have the longer name of its skill.
    named = folder.with_name(frontmatter(folder)["name"])
    if named != folder:
        shutil.copytree(folder, named, dirs_exist_ok=True)
    validator = Path(sys.executable).with_name("agentskills")
    need_engine("agentskills", validator.exists(), "skills-ref is not installed; it needs Python 3.11")
    done = subprocess.run(
        [validator, "validate", named], capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("skill", SKILLS, ids=str)
def test_the_frontmatter_has_only_fields_of_the_specification(skill: Path) -> None:
    fields = frontmatter(SKILL / skill)
    assert set(fields) <= SPECIFIED_FIELDS
    assert fields["name"]
    assert 1 <= len(fields["description"]) <= 1024
    assert len(fields.get("compatibility", "")) <= 500
    assert all(isinstance(value, str) for value in fields.get("metadata", {}).values())


def test_the_root_page_is_short() -> None:
    text = (SKILL / "SKILL.md").read_text(encoding="utf-8")
    assert frontmatter(SKILL)["name"] == "tao-run-inference-service"
    assert len(text.splitlines()) < 150
    assert len(text) / 4 < 2000


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_platforms_page_is_short(platform: str) -> None:
    assert len((SKILL / "platform" / platform / "SKILL.md").read_text(encoding="utf-8").splitlines()) < 120

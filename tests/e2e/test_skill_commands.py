"""The commands that SKILL.md gives an agent are run as they stand, in their order, on each platform that it names."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import SKILL, check_output, need_engine, run_script

BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> list[str]:
    """Each command line of the page's bash blocks."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def run_as_written(command: str) -> dict[str, object]:
    """Run one of the page's commands in the skill's folder, by this interpreter instead of .venv's; its document."""
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/python", command
    done = subprocess.run(
        [sys.executable, *arguments], cwd=SKILL, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    document: dict[str, object] = json.loads(done.stdout)
    check_output(Path(arguments[0]).stem, 0, document)
    return document


def need_platform(platform: str) -> None:
    if platform == "local-process":
        need_engine("smollm2", importlib.util.find_spec("xllamacpp") is not None, "xllamacpp is not installed")
    else:
        image = os.environ.get("IMAGE_SMOLLM2", "tao-inference-service/smollm2:0.1.0")
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True)
        need_engine("docker", found.returncode == 0, found.stderr.strip())


@pytest.mark.slow
@pytest.mark.xdist_group("docker")
@pytest.mark.parametrize("platform", ["local-process", "local-docker"])
def test_the_commands_of_the_skill_start_ask_watch_and_stop(platform: str) -> None:
    need_platform(platform)
    commands = [
        command
        for command in commands_of(SKILL / "SKILL.md")
        if command.startswith(".venv/") and ("--platform" not in command or f"--platform {platform}" in command)
    ]
    done = []
    try:
        for command in commands:
            document = run_as_written(command)
            done.append(Path(shlex.split(command)[1]).stem)
            if done[-1] == "send_request":
                assert "Paris" in str(document["content"])
    finally:
        run_script("stop_service", "--all")
    assert {"start_service", "send_request", "stop_service", "registry", "usage_report"} <= set(done)
    assert run_script("registry", "list").document["services"] == []


def test_every_script_that_a_page_names_exists_and_no_page_names_a_file_that_does_not() -> None:
    for page in (SKILL / "SKILL.md", SKILL / "README.md", *SKILL.glob("platform/*/SKILL.md")):
        text = page.read_text(encoding="utf-8")
        for script in set(re.findall(r"\b(?:scripts/)?(\w+\.py)\b", text)):
            assert (SKILL / "scripts" / script).exists(), f"{page}: {script}"
        for reference in set(re.findall(r"references/[\w.<>-]+\.(?:yaml|json)", text)):
            assert "<" in reference or (SKILL / reference).exists(), f"{page}: {reference}"

#!/usr/bin/env python3
"""Check what a platform needs of this machine (tools, credentials, GPUs); each failed check says what mends it.

preflight.py --platform local-docker      one platform; exit status 1 when a check failed
preflight.py                              all platforms: which of them can this machine use?
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from inference_service import output, platforms
from inference_service.contracts import Check
from inference_service.errors import ToolError

ALL = "all"
PATIENCE_SECONDS = 20.0
"""How long the table of all platforms waits for the slowest."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command_line = output.ArgumentParser(__doc__ or "")
    command_line.add_argument(
        "--platform",
        choices=(*platforms.names(), ALL),
        default=ALL,
        help="the platform to check (default: all of them, where a failed check is no error)",
    )
    return command_line


def main(arguments: argparse.Namespace) -> output.Document:
    """The checks of one platform, or of each.

    Raises:
        ToolError: a check of the one platform that was asked for failed; `checks` are in the error's document.
    """
    if arguments.platform == ALL:
        return {"platforms": all_checked()}
    result = checked(arguments.platform)
    failed = [check for check in result["checks"] if not check["ok"]]
    if failed:
        raise ToolError(
            "preflight_failed",
            f"{arguments.platform}: " + "; ".join(f"{check['name']}: {check['found']}" for check in failed),
            failed[0]["fix"],
            platform=arguments.platform,
            checks=result["checks"],
        )
    return result


def all_checked() -> list[dict[str, Any]]:
    """The checks of every platform, made at once; one that takes too long is one failed check."""
    from inference_service import bounded

    found: dict[str, dict[str, Any]] = {}

    def task(name: str) -> Callable[[], None]:
        return lambda: found.update({name: checked(name)})

    bounded.run([task(name) for name in platforms.names()], PATIENCE_SECONDS)
    return [found.get(name) or _unanswered(name) for name in platforms.names()]


def checked(platform: str) -> dict[str, Any]:
    """The platform's checks as JSON; a driver that cannot even be asked is one failed check."""
    try:
        return _document(platform, platforms.load(platform).preflight())
    except ToolError as error:
        return _document(platform, [Check("driver", False, error.message, error.fix or _manual(platform))])
    except Exception as error:
        # One platform's fault is not to hide what the others can do.
        found = f"its checks failed: {type(error).__name__}: {error}"
        return _document(platform, [Check("driver", False, found, _manual(platform))])


def _unanswered(platform: str) -> dict[str, Any]:
    found = f"its checks take longer than {PATIENCE_SECONDS:g} s"
    return _document(platform, [Check("driver", False, found, f"preflight.py --platform {platform} waits for them")])


def _manual(platform: str) -> str:
    return f"see platform/{platform}/SKILL.md"


def _document(platform: str, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "platform": platform,
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def show(document: Mapping[str, Any]) -> None:
    """The checks as a table for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("platform", "check", "", "found, and what mends it")
    for platform in document.get("platforms") or [document]:
        for check in platform["checks"]:
            told = Text(check["found"])
            if not check["ok"]:
                told.append(f"\n{check['fix']}", style="bold")
            table.add_row(platform["platform"], check["name"], "ok" if check["ok"] else "MISSING", told)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, show))

"""Platforms are folders: platform/<name>/driver.py is loaded from its file when that platform is used, and only then.

`platform/` is no Python package (it would shadow the standard library's module of that name). What a driver is split
into lies beside it in modules whose names begin with the platform's, so that no two platforms can meet.
"""

from __future__ import annotations

import importlib.util
import sys

from inference_service import paths
from inference_service.contracts import Driver
from inference_service.errors import BadInput, ToolError


def names() -> list[str]:
    """The platforms of this skill: the folders under platform/ that hold a driver, sorted."""
    return sorted(file.parent.name for file in paths.PLATFORMS.glob("*/driver.py"))


def load(name: str) -> Driver:
    """The driver of that platform; needs none of the platform's own client libraries yet.

    Raises:
        BadInput: there is no such platform; the message lists those there are.
    """
    if name not in names():
        raise BadInput("unknown_platform", f"unknown platform {name!r}", f"choose one of: {', '.join(names())}")
    module_name = f"platform_{name.replace('-', '_')}_driver"
    if module_name not in sys.modules:
        folder = paths.PLATFORMS / name
        spec = importlib.util.spec_from_file_location(module_name, folder / "driver.py")
        if spec is None or spec.loader is None:
            raise ToolError("platform_unloadable", f"cannot load {folder / 'driver.py'}", "restore the file")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    driver: Driver = sys.modules[module_name].Driver()
    return driver

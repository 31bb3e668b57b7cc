"""Platforms are folders: platform/<name>/driver.py is loaded from its file when that platform is used, and only then.

`platform/` is no Python package (it would shadow the standard library's module of that name). What a driver is split
into lies beside it in modules whose names begin with the platform's, so that no two platforms can meet.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from typing import Any

from inference_service import paths
from inference_service.contracts import Driver
from inference_service.errors import BadInput, ToolError

# Several services are stopped at once by threads: none may see a module that another has loaded only half.
_loading = threading.Lock()


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
    with _loading:
        driver: Driver = _module(name).Driver()
    return driver


def _module(platform: str) -> Any:
    module_name = f"platform_{platform.replace('-', '_')}_driver"
    if module_name in sys.modules:
        return sys.modules[module_name]
    folder = paths.PLATFORMS / platform
    spec = importlib.util.spec_from_file_location(module_name, folder / "driver.py")
    if spec is None or spec.loader is None:
        raise ToolError("platform_unloadable", f"cannot load {folder / 'driver.py'}", "restore the file")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module

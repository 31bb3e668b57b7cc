"""What local-docker needs of this machine, each check with the command that mends it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import local_docker_daemon as daemon

from inference_service import references
from inference_service.contracts import Check
from inference_service.docker_container import is_tegra
from inference_service.docker_errors import TOOLKIT_FIX
from inference_service.errors import ToolError

if TYPE_CHECKING:
    from docker import DockerClient

_REGISTRY = "nvcr.io"
_LOGIN = """printf %s "$NGC_KEY" | docker login nvcr.io --username '$oauthtoken' --password-stdin"""
_LEAST_FREE_BYTES = 2 * 10**9
_HOOKS = ("nvidia-container-runtime-hook", "nvidia-container-toolkit")


def checks() -> list[Check]:
    """All checks that can be made: without the package or a daemon those that need them are left out."""
    try:
        docker = daemon.package()
    except ToolError as error:
        return [Check("docker package", False, error.message, error.fix)]
    found = [Check("docker package", True, f"docker {docker.__version__}")]
    try:
        address = daemon.default_address()
        client = daemon.connect(address)
    except ToolError as error:
        return [*found, Check("docker daemon", False, error.message, error.fix)]
    with_client = [_daemon(client, address), gpus(client.info(), address, local_gpus()), _disk(client.info(), address)]
    return [*found, *with_client, _login()]


def gpus(info: Mapping[str, Any], address: str, on_this_machine: list[str]) -> Check:
    """Whether a container can have GPUs. `info` is `docker info`, `on_this_machine` the lines of `nvidia-smi -L`.

    A machine without a GPU is not at fault: it runs the archs that need none.
    """
    name = "gpus"
    here = daemon.is_on_this_machine(address)
    way = _way_to_gpus(info, here)
    if not here:
        return Check(name, True, f"the daemon is elsewhere; it {f'offers {way}' if way else 'names no NVIDIA runtime'}")
    if on_this_machine and not way:
        return Check(name, False, f"{len(on_this_machine)} GPU(s), which Docker cannot give to containers", TOOLKIT_FIX)
    if on_this_machine:
        return Check(name, True, f"{len(on_this_machine)} GPU(s) through {way}: {'; '.join(on_this_machine)}")
    if is_tegra():
        fix = "" if way else TOOLKIT_FIX
        return Check(
            name, bool(way), f"Tegra's own GPU, {f'through {way}' if way else 'without a runtime for it'}", fix
        )
    without = ", ".join(arch for arch, facts in references.load().archs.items() if facts.launch.min_gpus == 0)
    return Check(name, True, f"no NVIDIA GPU: only network archs that need none can run here ({without})")


def local_gpus() -> list[str]:
    """The GPUs of this machine, a line each, as `nvidia-smi -L` lists them."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("GPU ")]


def has_login(config: Mapping[str, Any], registry: str) -> bool:
    """Whether Docker's client configuration names the registry. Credentials are not looked at."""
    return registry in config.get("auths", {}) or registry in config.get("credHelpers", {})


def _daemon(client: DockerClient, address: str) -> Check:
    return Check("docker daemon", True, f"Docker {client.version()['Version']} at {address}")


def _way_to_gpus(info: Mapping[str, Any], here: bool) -> str:
    if "nvidia" in (info.get("Runtimes") or {}):
        return "the NVIDIA runtime"
    if any("nvidia.com/gpu" in str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()):
        return "CDI"
    hook = next(filter(shutil.which, _HOOKS), None) if here else None
    return hook or ""


def _disk(info: Mapping[str, Any], address: str) -> Check:
    name, root = "disk", Path(info.get("DockerRootDir") or "/var/lib/docker")
    # Docker Desktop keeps its images in a machine of its own, whose folders are not here.
    if not daemon.is_on_this_machine(address) or not root.exists():
        return Check(name, True, f"{root} is not on this machine; see docker system df")
    free = shutil.disk_usage(root).free
    if free < _LEAST_FREE_BYTES:
        return Check(
            name, False, f"{free / 1e9:.1f} GB free for images in {root}", "docker system df; then docker image prune"
        )
    return Check(name, True, f"{free / 1e9:.0f} GB free for images in {root}")


def _login() -> Check:
    from docker.utils.config import find_config_file

    name, found = "registry login", find_config_file()
    file = str(found) if found else ""
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as error:
        return Check(name, False, f"{file} cannot be read: {error}", f"mend or remove {file}, then: {_LOGIN}")
    if has_login(config, _REGISTRY):
        return Check(name, True, f"{_REGISTRY}: logged in")
    return Check(name, True, f"{_REGISTRY}: not logged in; if a pull of NVIDIA's images is refused: {_LOGIN}")

"""What a user may choose about a container beyond the launch spec: parsed, and refused before Docker is asked."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inference_service import docker_options
from inference_service.contracts import LaunchSpec, Mount, PlatformOption
from inference_service.docker_options import Settings
from inference_service.errors import BadInput

OPTIONS = (
    PlatformOption(
        "bind-address",
        "address of this machine that the service's port is published on; anyone who reaches it can use the service",
        default="127.0.0.1",
        metavar="IP",
    ),
    *docker_options.OPTIONS,
)


def settings(spec: LaunchSpec, environ: Mapping[str, str] = os.environ) -> Settings:
    """The checked options of this launch; one that was not given has its default.

    Raises:
        BadInput: an option has no meaning, or the GPU ids are not `num_gpus` many.
    """
    given = _dashed(spec.platform_options)
    address = bind_address(given.get("bind-address") or "127.0.0.1")
    return docker_options.settings(given, spec.num_gpus, address, environ)


def bind_address(text: str) -> str:
    """The IP address to publish on, as Docker takes it; `localhost` is 127.0.0.1."""
    try:
        return str(ipaddress.ip_address("127.0.0.1" if text == "localhost" else text.strip("[]")))
    except ValueError:
        raise BadInput(
            "bad_bind_address",
            f"--bind-address {text!r} is not an IP address",
            "use 127.0.0.1 (this machine only), 0.0.0.0 (everyone who reaches it) or another address of this machine",
        ) from None


def _dashed(options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = {name.replace("_", "-") for name in options} - {option.name for option in OPTIONS}
    if unknown:
        raise BadInput(
            "unknown_platform_option",
            f"local-docker has no option {sorted(unknown)[0]!r}",
            f"it has: {', '.join(option.name for option in OPTIONS)}",
        )
    return {name.replace("_", "-"): value for name, value in options.items()}


def check_mounts(mounts: Iterable[Mount], on_this_machine: bool) -> None:
    """Refuse (BadInput) a mount that Docker cannot make; the source is looked for where it is on this machine."""
    for mount in mounts:
        if not (mount.source.startswith("/") and mount.target.startswith("/")):
            raise BadInput(
                "bad_mount",
                f"the mount {mount.source}:{mount.target} is not between absolute paths",
                "write absolute paths",
            )
        if mount.target == "/":
            raise BadInput(
                "bad_mount", "nothing can be mounted over the container's /", "choose another path in the container"
            )
        if on_this_machine and not Path(mount.source).exists():
            raise BadInput(
                "mount_not_found", f"{mount.source} does not exist, so it cannot be mounted", "check --mount"
            )

"""What a user may choose about an endpoint beyond the launch spec: parsed, and refused before Lepton is asked."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service.contracts import LaunchSpec, Mount, PlatformOption
from inference_service.errors import BadInput

OPTIONS = (
    PlatformOption(
        "resource-shape",
        "id of the machine shape, for example gpu.8xh100-sxm (default: the one with --num-gpus GPUs; asked if several)",
        metavar="ID",
    ),
    PlatformOption(
        "dedicated-node-group", "run on this node group of the workspace (its id or its name)", metavar="GROUP"
    ),
    PlatformOption(
        "image-pull-secret",
        "the workspace's registry credential that pulls the image (nvcr.io images that are not public need one)",
        metavar="NAME",
    ),
    PlatformOption(
        "volume",
        "the node group's storage that --mount takes its paths from: node-local, or node-<type>:<name> (node-nfs:data)",
        metavar="VOLUME",
    ),
    PlatformOption(
        "shm-mib", "size of /dev/shm in MiB (default: 8192 with GPUs, else Lepton's)", type=int, metavar="N"
    ),
)

_SHM_MIB_WITH_GPUS = 8192
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_SHAPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_VOLUME = re.compile(r"node-local|node-[a-z0-9]+:[A-Za-z0-9][A-Za-z0-9._-]*")
# The same list as the client's (leptonai 0.47, api/v2/job_validation.py).
_RESERVED_TARGETS = frozenset(
    ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/media", "/opt", "/proc", "/run", "/sbin", "/srv", "/sys",
     "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/sbin", "/var", "/sys/fs/cgroup", "/sys/kernel/security",
     "/proc/sys", "/proc/bus")
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The platform's options of one launch, checked. What is None is left to Lepton, or still to be found."""

    resource_shape: str | None
    node_group: str | None
    image_pull_secret: str | None
    volume: str | None
    shm_mib: int | None


def settings(spec: LaunchSpec) -> Settings:
    """The checked options of this launch.

    Raises:
        BadInput: an option has no meaning, or a mount cannot be made on Lepton.
    """
    given = _given(spec.platform_options)
    shape, volume, shm = given.get("resource-shape"), given.get("volume"), given.get("shm-mib")
    found = Settings(
        # Ids are lower case; the client writes them so, too.
        resource_shape=_matched(
            "resource-shape", shape, _SHAPE, "python scripts/preflight.py --platform lepton"
        ).lower()
        if shape is not None
        else None,
        node_group=_optional("dedicated-node-group", given, "lep node list"),
        image_pull_secret=_optional("image-pull-secret", given, "the workspace's settings list registry credentials"),
        volume=None
        if volume is None
        else _matched("volume", volume, _VOLUME, "write node-local or node-<type>:<name>, for example node-nfs:data"),
        shm_mib=_shm(shm, spec.num_gpus),
    )
    for mount in spec.mounts:
        _check_mount(mount, found.volume)
    return found


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    known = {option.name for option in OPTIONS}
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            raise BadInput(
                "unknown_platform_option", f"lepton has no option {name!r}", f"it has: {', '.join(sorted(known))}"
            )
    return given


def _optional(name: str, given: Mapping[str, Any], fix: str) -> str | None:
    return None if given.get(name) is None else _matched(name, given[name], _NAME, fix)


def _matched(name: str, text: str, pattern: re.Pattern[str], fix: str) -> str:
    if not pattern.fullmatch(text):
        raise BadInput(f"bad_{name.replace('-', '_')}", f"--{name} {text!r} cannot be one", fix)
    return text


def _shm(given: int | None, num_gpus: int) -> int | None:
    if given is None:
        return _SHM_MIB_WITH_GPUS if num_gpus else None
    if given <= 0:
        raise BadInput("bad_shm_mib", f"--shm-mib {given} is not a size", "give MiB, for example 8192")
    return given


def _check_mount(mount: Mount, volume: str | None) -> None:
    if volume is None:
        raise BadInput(
            "mount_without_volume",
            f"--mount {mount.source}:{mount.target}: Lepton has no files of this machine, only its own storage",
            "add --volume node-<type>:<name>, where the checkpoint is",
        )
    if posixpath.normpath("/" + mount.target.lstrip("/")) in _RESERVED_TARGETS:
        raise BadInput(
            "bad_mount", f"Lepton lets nobody mount over {mount.target}", "choose another path in the container"
        )

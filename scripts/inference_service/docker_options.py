"""What a user may choose about any Docker container beyond the launch spec, on whichever platform it runs.

Values are parsed, and refused, before any Docker daemon is asked.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service.contracts import PlatformOption
from inference_service.errors import BadInput

DEFAULT_NETWORK = "tao_default"
GPU_MODES = ("auto", "device-requests", "nvidia-runtime")

OPTIONS = (
    PlatformOption(
        "network",
        f"Docker network of the container, created if missing (default: $DOCKER_NETWORK or {DEFAULT_NETWORK})",
        metavar="NAME",
    ),
    PlatformOption(
        "shm-size", "size of the container's /dev/shm, for example 8g or 512m", default="8g", metavar="SIZE"
    ),
    PlatformOption(
        "gpu-ids",
        "these GPUs instead of the first N: comma-separated indexes or UUIDs of `nvidia-smi -L`",
        metavar="IDS",
    ),
    PlatformOption(
        "gpu-mode",
        "how GPUs are asked for: device-requests, nvidia-runtime (Tegra/Jetson), or auto, which looks at the machine",
        default="auto",
        choices=GPU_MODES,
    ),
)

_NETWORK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
# On these a container is not found by its name, or its port is not published.
_NETWORKS_OF_DOCKER = ("bridge", "default", "host", "none")
_SIZE = re.compile(r"(\d+)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_GPU_ID = re.compile(r"\d+(:\d+)?|GPU-[0-9a-fA-F-]+|MIG-[0-9a-zA-Z/-]+")


@dataclass(frozen=True)
class Settings:
    """The platform's options of one launch, checked. `shm_bytes` is in bytes; no `gpu_ids` means the first N GPUs."""

    bind_address: str
    network: str
    shm_bytes: int
    gpu_ids: tuple[str, ...]
    gpu_mode: str

    @property
    def published_to_this_machine_only(self) -> bool:
        """Whether no other machine can reach the service."""
        return ipaddress.ip_address(self.bind_address).is_loopback


def settings(
    given: Mapping[str, Any], num_gpus: int, address: str, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The checked settings of a container with the port published on `address`; an option not given has its default.

    Raises:
        BadInput: an option has no meaning, or the GPU ids are not `num_gpus` many.
    """
    values = {option.name: option.default for option in OPTIONS}
    values.update({name: value for name, value in given.items() if value is not None})
    return Settings(
        bind_address=address,
        network=network_name(values["network"] or environ.get("DOCKER_NETWORK") or DEFAULT_NETWORK),
        shm_bytes=size_in_bytes(values["shm-size"]),
        gpu_ids=gpu_ids(values["gpu-ids"], num_gpus),
        gpu_mode=gpu_mode(values["gpu-mode"]),
    )


def network_name(text: str) -> str:
    """The name of a Docker network on which containers find each other by name."""
    if text in _NETWORKS_OF_DOCKER or text.startswith("container:"):
        raise BadInput(
            "bad_network",
            f"the Docker network {text!r} gives a container no published port or no name for other containers",
            f"leave --network and DOCKER_NETWORK out ({DEFAULT_NETWORK} is made), or name a network of your own",
        )
    if not _NETWORK_NAME.fullmatch(text):
        raise BadInput(
            "bad_network",
            f"{text!r} cannot be the name of a Docker network",
            "use letters, digits, '_', '.' and '-', beginning with a letter or a digit",
        )
    return text


def size_in_bytes(text: str) -> int:
    """The bytes of a size as Docker writes them: 8g, 512m, 64MB, 1073741824 (powers of 1024)."""
    parsed = _SIZE.fullmatch(text.strip())
    size = int(parsed[1]) * _SIZE_UNITS[(parsed[2] or "").lower()] if parsed else 0
    if size <= 0 or size >= 2**63:
        raise BadInput(
            "bad_shm_size", f"--shm-size {text!r} is not a size", "write a number and b, k, m or g, for example 8g"
        )
    return size


def gpu_ids(text: str | None, num_gpus: int) -> tuple[str, ...]:
    """The GPU ids of a comma-separated list, none when it was not given.

    Raises:
        BadInput: an id has no meaning or comes twice, or they are not `num_gpus` many.
    """
    if not text:
        return ()
    ids = tuple(part.strip() for part in text.split(","))
    for gpu_id in ids:
        if not _GPU_ID.fullmatch(gpu_id):
            raise BadInput(
                "bad_gpu_id", f"--gpu-ids {text!r}: {gpu_id!r} is not a GPU's index or UUID", "see nvidia-smi -L"
            )
    if len(set(ids)) != len(ids):
        raise BadInput("bad_gpu_id", f"--gpu-ids {text!r} names a GPU twice", "name each GPU once")
    if len(ids) != num_gpus:
        raise BadInput(
            "gpu_count_mismatch",
            f"--gpu-ids {text!r} names {len(ids)} GPU(s), but num_gpus is {num_gpus}",
            f"use --num-gpus {len(ids)}, or name {num_gpus} GPU(s)",
        )
    return ids


def gpu_mode(text: str) -> str:
    """The way in which GPUs are asked for, one of GPU_MODES."""
    if text not in GPU_MODES:
        raise BadInput("badgpu_mode", f"--gpu-mode {text!r} is unknown", f"choose one of: {', '.join(GPU_MODES)}")
    return text

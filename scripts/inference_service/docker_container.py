"""What one Docker container is to be like, as plain values, and the `docker run` command that makes it.

It is made from a launch spec alone, by every platform that has a Docker daemon somewhere. Secrets are names here; their
values join only when the container is created.
"""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference_service.contracts import (
    JOB_ID_LABEL,
    MODEL_PATH_LABEL,
    NETWORK_ARCH_LABEL,
    REGISTRY_LABEL,
    STOP_AFTER_LABEL,
    LaunchSpec,
    Mount,
)
from inference_service.docker_options import Settings

# A server that logs every request must not fill the host's disk (bytes of log kept: size x files).
LOG_MAX_SIZE = "50m"
LOG_MAX_FILES = "3"
_TEGRA_RELEASE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Gpus:
    """What is asked of Docker for GPUs: the first `count` ones, or `ids`; through the `runtime` where one is named."""

    count: int
    ids: tuple[str, ...] = ()
    runtime: str | None = None


@dataclass(frozen=True)
class Plan:
    """One container, before it exists. `host_port` is None until the registry has reserved one."""

    name: str
    image: str
    command: str
    env: Mapping[str, str]
    secret_env: tuple[str, ...]
    labels: Mapping[str, str]
    container_port: int
    bind_address: str
    host_port: int | None
    network: str
    shm_bytes: int
    mounts: tuple[Mount, ...]
    gpus: Gpus


def plan(spec: LaunchSpec, settings: Settings, tegra: bool, owner: str) -> Plan:
    """The container of this launch spec. `tegra`: the machine that runs it is a Tegra/Jetson (facts: local-docker).
    `owner`: whose service it is, for REGISTRY_LABEL."""
    gpus = _gpus(spec, settings, tegra)
    env = dict(spec.env)
    if gpus.runtime:
        env = {"NVIDIA_VISIBLE_DEVICES": _visible(gpus, tegra), "NVIDIA_DRIVER_CAPABILITIES": "all", **env}
    stop_after = spec.stop_after()
    return Plan(
        name=spec.job_id,
        image=spec.image,
        command=spec.command,
        env=env,
        secret_env=spec.secret_env,
        labels={
            JOB_ID_LABEL: spec.job_id,
            NETWORK_ARCH_LABEL: spec.network_arch,
            MODEL_PATH_LABEL: spec.model_path,
            REGISTRY_LABEL: owner,
            **({STOP_AFTER_LABEL: stop_after} if stop_after else {}),
        },
        container_port=spec.container_port,
        bind_address=settings.bind_address,
        host_port=spec.host_port,
        network=settings.network,
        shm_bytes=settings.shm_bytes,
        mounts=spec.mounts,
        gpus=gpus,
    )


def is_tegra(kernel_release: str | None = None) -> bool:
    """Whether a machine is a Tegra/Jetson: by its kernel's release; None asks this machine itself."""
    if kernel_release is not None:
        return "tegra" in kernel_release
    return _TEGRA_RELEASE.exists() or "tegra" in platform.release()


def docker_run(plan: Plan) -> list[str]:
    """The `docker run` command that makes the same container; it takes secrets from the environment, by name."""
    host_port = "" if plan.host_port is None else plan.host_port
    address = f"[{plan.bind_address}]" if ":" in plan.bind_address else plan.bind_address
    command = ["docker", "run", "--detach", "--init", "--name", plan.name, "--network", plan.network]
    command += ["--publish", f"{address}:{host_port}:{plan.container_port}", "--shm-size", f"{plan.shm_bytes}b"]
    command += ["--log-driver", "json-file", "--log-opt", f"max-size={LOG_MAX_SIZE}"]
    command += ["--log-opt", f"max-file={LOG_MAX_FILES}"]
    for name, value in plan.labels.items():
        command += ["--label", f"{name}={value}"]
    for name, value in plan.env.items():
        command += ["--env", f"{name}={value}"]
    for name in plan.secret_env:
        command += ["--env", name]
    for mount in plan.mounts:
        command += ["--mount", _mount_argument(mount)]
    if plan.gpus.runtime:
        command += ["--runtime", plan.gpus.runtime]
    elif plan.gpus.count:
        command += ["--gpus", f'"device={",".join(plan.gpus.ids)}"' if plan.gpus.ids else str(plan.gpus.count)]
    return [*command, "--entrypoint", "bash", plan.image, "-c", plan.command]


def _gpus(spec: LaunchSpec, settings: Settings, tegra: bool) -> Gpus:
    by_runtime = settings.gpu_mode == "nvidia-runtime" or (settings.gpu_mode == "auto" and tegra)
    runtime = "nvidia" if by_runtime and spec.num_gpus else None
    return Gpus(count=spec.num_gpus, ids=settings.gpu_ids, runtime=runtime)


def _visible(gpus: Gpus, tegra: bool) -> str:
    # The runtime takes ids or everything, but no count. A Tegra has one GPU, which is on its chip.
    if gpus.ids or not tegra:
        return ",".join(gpus.ids or map(str, range(gpus.count)))
    return "all"


def _mount_argument(mount: Mount) -> str:
    # docker run reads --mount as one line of CSV: a comma in a path has to be quoted.
    fields = [
        "type=bind",
        f"source={mount.source}",
        f"target={mount.target}",
        *(["readonly"] if mount.read_only else []),
    ]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()

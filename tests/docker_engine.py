"""What tests of the local-docker driver share: launch specs, registry entries, the engine."""

from __future__ import annotations

import dataclasses
import os
import socket
import uuid
from typing import Any

from support import need_engine

from inference_service import paths, platforms
from inference_service.contracts import Driver, LaunchSpec, Progress, ServiceEntry, StartedService

BASE_IMAGE = os.environ.get("TAO_E2E_BASE_IMAGE", "python-base:bookworm")
"""Any image with bash and python3 will do."""

SERVE = "umask 0 && exec python3 -u -m http.server 8080"


def launch_spec(**changes: Any) -> LaunchSpec:
    """A launch spec of a small HTTP server without GPUs, with these changes."""
    spec = LaunchSpec(
        job_id=str(uuid.uuid4()),
        network_arch="smollm2",
        platform="local-docker",
        model_path="hf_model://HuggingFaceTB/SmolLM2-135M-Instruct",
        image=BASE_IMAGE,
        command=SERVE,
        env={"TAO_API_JOB_ID": "j"},
        secret_env=(),
        num_gpus=0,
        container_port=8080,
        host_port=None,
    )
    return dataclasses.replace(spec, **changes)


def entry_of(spec: LaunchSpec, started: StartedService | None = None) -> ServiceEntry:
    """The registry entry of a launch spec; as reserved, when it has not started."""
    return ServiceEntry(
        job_id=spec.job_id,
        network_arch=spec.network_arch,
        platform=spec.platform,
        host_url=started.host_url if started else "",
        status="running" if started else "starting",
        extras=started.extras if started else {},
    )


def need_docker() -> Any:
    """A docker.APIClient of the engine that has BASE_IMAGE; the test is skipped where there is none."""
    try:
        import docker

        api = docker.from_env().api
        api.inspect_image(BASE_IMAGE)  # type: ignore[no-untyped-call]
    except Exception as error:
        need_engine("docker", False, f"no engine with the image {BASE_IMAGE}: {error}")
    return api


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str, status: int = 200) -> bool:
    """Whether a GET of that URL is answered with that status."""
    import requests

    try:
        return requests.get(url, timeout=5).status_code == status
    except requests.RequestException:
        return False


class Engine:
    """The engine, the driver under test, and what this test started on it."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.driver: Driver = platforms.load("local-docker")
        self.reported: list[Progress] = []

    def start(self, **changes: Any) -> tuple[LaunchSpec, StartedService]:
        spec = launch_spec(**{"host_port": free_port(), **changes})
        return spec, self.driver.start(spec, self.reported.append)

    def ours(self) -> list[str]:
        """The names of this test's containers, running or not."""
        label = f"tao-registry={paths.registry_owner()}"
        return [item["Names"][0].lstrip("/") for item in self.api.containers(all=True, filters={"label": label})]

    def inspect(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.inspect_container(job_id)
        return found

    def log(self, spec: LaunchSpec) -> list[str]:
        return list(self.driver.logs(entry_of(spec), None, follow=True))

"""The gateway's image on a real Docker engine: without rights, with a read-only root, healthy, ended in good order."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from docker_engine import free_port
from support import eventually, need_engine

pytestmark = [pytest.mark.docker, pytest.mark.slow]

IMAGE = os.environ.get("IMAGE_CLAUDE", "tao-inference-service/gateway:0.1.0")
CALLER_KEY = "the-key-of-whoever-started-it"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@dataclass
class Container:
    """A container of the image; the port of this machine that it answers at."""

    name: str
    port: int

    def inspect(self) -> dict[str, Any]:
        (found,) = json.loads(docker("inspect", self.name))
        assert isinstance(found, dict)
        return found

    def healthy(self) -> bool:
        return bool(self.inspect()["State"]["Health"]["Status"] == "healthy")

    def run(self, *command: str) -> str:
        return docker("exec", self.name, *command)


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, text=True)
    need_engine("gateway-image", found.returncode == 0, f"{IMAGE} is not on a Docker engine: {found.stderr.strip()}")
    monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", CALLER_KEY)
    made = Container(f"test-gateway-{uuid.uuid4().hex[:8]}", free_port())
    limits = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "256m")
    where = ("--publish", f"127.0.0.1:{made.port}:8080", "--env", "TAO_GATEWAY_CALLER_KEY")
    docker("run", "--detach", "--name", made.name, *limits, *where, IMAGE)
    yield made
    docker("rm", "--force", "--volumes", made.name)


def test_it_is_healthy_without_rights_and_keeps_its_callers_in_its_volume(container: Container) -> None:
    eventually(container.healthy, timeout=60)
    url = f"http://127.0.0.1:{container.port}"
    assert requests.get(f"{url}/v1/models", timeout=10).status_code == 401
    answer = requests.get(f"{url}/v1/models", headers={"x-api-key": CALLER_KEY}, timeout=10)
    assert answer.status_code == 200
    assert container.run("id", "-u").strip() == "10001"
    made = json.loads(container.run("callers.py", "add", "alice"))
    docker("restart", container.name)
    eventually(container.healthy, timeout=60)

    def known() -> bool:
        headers = {"x-api-key": made["api_key"]}
        return requests.get(f"{url}/v1/models", headers=headers, timeout=10).status_code == 200

    eventually(known)
    requests.post(f"{url}/v1/messages", json={"model": "no"}, headers={"x-api-key": made["api_key"]}, timeout=10)

    def reported() -> bool:
        groups = json.loads(container.run("usage_report.py", "--by", "caller"))["groups"]
        return "alice" in {group["caller"] for group in groups}

    eventually(reported)


def test_told_to_stop_it_ends_at_once_with_status_0_when_nothing_is_under_way(container: Container) -> None:
    eventually(container.healthy, timeout=60)
    began = time.monotonic()
    docker("stop", "--time", "30", container.name)
    assert time.monotonic() - began < 10
    assert container.inspect()["State"]["ExitCode"] == 0


def test_it_has_its_own_parts_and_nothing_to_build_or_install_with(container: Container) -> None:
    history = docker(
        "history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", IMAGE
    ).splitlines()
    copied = [int(line.split()[0]) for line in history if "COPY" in line]
    assert 0 < sum(copied) < 80_000_000
    for missing in ("pip", "xllamacpp", "pytest"):
        with pytest.raises(AssertionError, match="No module named"):
            container.run("python3", "-c", f"import {missing}")

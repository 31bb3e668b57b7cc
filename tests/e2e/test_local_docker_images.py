"""Images that are missing, built here, or behind a password: a real engine, and Debian's docker-registry."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_engine import Engine, answers, entry_of, free_port
from support import SKILL, eventually, need_engine

from inference_service import platforms
from inference_service.errors import ToolError

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("docker")]


def test_an_image_that_is_built_here_and_is_not_gives_the_build_command(engine: Engine) -> None:
    with pytest.raises(ToolError) as missing:
        engine.start(image="tao-test/never-built:1")
    assert missing.value.type == "image_not_built"
    assert missing.value.fix == f"cd {shlex.quote(str(SKILL))} && docker build --tag tao-test/never-built:1 ."


def test_an_image_s_registry_that_does_not_answer_is_named(engine: Engine) -> None:
    with pytest.raises(ToolError) as missing:
        engine.start(image=f"127.0.0.1:{free_port()}/x/y:1", network_arch="cosmos-rl")
    assert missing.value.type == "registry_unreachable"
    assert engine.ours() == []


class Registry:
    """A registry with a password on a loopback port, which holds one tiny image without bash."""

    user, password = "tester", "planted-registry-password"

    def __init__(self, api: Any, port: int) -> None:
        self.image = f"127.0.0.1:{port}/tiny/image:1"
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            file = tarfile.TarInfo("data")
            file.size = 4 * 2**20
            archive.addfile(file, io.BytesIO(os.urandom(file.size)))
        repository, tag = self.image.rsplit(":", 1)
        api.import_image_from_data(tar.getvalue(), repository=repository, tag=tag)
        credentials = {"username": self.user, "password": self.password}
        pushed = api.push(self.image, stream=True, decode=True, auth_config=credentials)
        assert not [event["error"] for event in pushed if "error" in event]
        api.remove_image(self.image)

    def login(self, folder: Path, port: int) -> None:
        auth = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {f"127.0.0.1:{port}": {"auth": auth}}}))


@pytest.fixture
def registry(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Registry, Path, int]]:
    missing = [program for program in ("docker-registry", "htpasswd") if shutil.which(program) is None]
    need_engine(
        "registry", not missing, f"not installed: {', '.join(missing)} (Debian: docker-registry, apache2-utils)"
    )
    port, folder = free_port(), tmp_path / "registry"
    folder.mkdir()
    htpasswd = subprocess.run(
        ["htpasswd", "-niB", Registry.user], input=Registry.password, capture_output=True, text=True, check=True
    )
    (folder / "htpasswd").write_text(htpasswd.stdout)
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
        "log": {"level": "error"},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    docker_config = tmp_path / "docker-config"
    docker_config.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config))
    server = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: answers(f"http://127.0.0.1:{port}/v2/", 401))
        served = Registry(engine.api, port)
        yield served, docker_config, port
        for name in engine.ours():
            engine.api.remove_container(name, force=True)
        if engine.api.images(name=served.image.rsplit(":", 1)[0]):
            engine.api.remove_image(served.image, force=True)
    finally:
        server.terminate()
        server.wait(timeout=10)


def test_an_unauthorized_pull_says_how_to_log_in(engine: Engine, registry: tuple[Registry, Path, int]) -> None:
    served, _, port = registry
    with pytest.raises(ToolError) as refused:
        engine.start(image=served.image, network_arch="cosmos-rl")
    assert refused.value.type == "pull_unauthorized"
    assert refused.value.fix == f"docker login 127.0.0.1:{port}"
    assert engine.ours() == []


def test_a_missing_image_is_pulled_with_the_users_login_and_progress(
    engine: Engine, registry: tuple[Registry, Path, int]
) -> None:
    served, docker_config, port = registry
    served.login(docker_config, port)
    engine.driver = platforms.load("local-docker")
    spec, started = engine.start(image=served.image, network_arch="cosmos-rl")
    pulling = [step for step in engine.reported if step.stage == "pulling"]
    assert pulling[-1].fraction == 1.0
    assert pulling[-1].details["bytes"] > 4 * 2**20
    assert served.password not in repr(engine.reported)
    entry = entry_of(spec, started)
    eventually(lambda: engine.driver.status(entry).dead)
    assert "exit code 127" in engine.driver.status(entry).reason, "the image has no bash"
    assert "bash" in "".join(engine.driver.logs(entry, None, follow=False))


def test_an_image_that_the_registry_does_not_have_is_told(engine: Engine, registry: tuple[Registry, Path, int]) -> None:
    served, docker_config, port = registry
    served.login(docker_config, port)
    engine.driver = platforms.load("local-docker")
    with pytest.raises(ToolError) as missing:
        engine.start(image=f"127.0.0.1:{port}/tiny/other:1", network_arch="cosmos-rl")
    assert missing.value.type == "image_not_found"

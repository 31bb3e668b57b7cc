"""local-docker: start_service.py against `docker run`, the very command that --dry-run shows, and curl."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from starts import frame
from starts.docker_relay import DockerRelay

_WANTED = ("--platform", "local-docker", *frame.SMOLLM2)
_SOCKET = "unix://"


class LocalDocker:
    """The smollm2 image on the Docker engine of this machine."""

    name, client, unit = "local-docker", "docker run + curl", "API requests"
    _relay: DockerRelay | None = None

    def missing(self) -> str:
        """Whether the engine and the image are there."""
        return frame.image_missing(frame.script("resolve_image", "--network-arch", "smollm2")["image"])

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """A relay before the engine's socket counts; an engine that is reached otherwise is not counted."""
        host = os.environ.get("DOCKER_HOST", f"{_SOCKET}/var/run/docker.sock")
        if not host.startswith(_SOCKET):
            yield
            return
        with (
            tempfile.TemporaryDirectory() as folder,
            DockerRelay(Path(folder, "docker.sock"), host.removeprefix(_SOCKET)) as relay,
            mock.patch.dict(os.environ, {"DOCKER_HOST": f"{_SOCKET}{relay.file}"}),
        ):
            self._relay = relay
            yield
        self._relay = None

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """They are always counted: how often the state is asked differs from start to start."""
        yield

    def ours(self) -> frame.Start:
        """start_service.py, which returns when the service is ready."""
        before = self._count()
        run = frame.timed(frame.command("start_service", *_WANTED))
        calls = None if before is None else (self._count() or 0) - before
        job_id = json.loads(run.printed)["job_id"]
        try:
            return run.start(frame.container_running_since(job_id), calls)
        finally:
            frame.script("stop_service", "--job-id", job_id)

    def by_hand(self) -> frame.Start:
        """docker run is given a network that is there, as it is after any start of ours."""
        port = frame.free_port()
        shown = frame.script("start_service", *_WANTED, "--host-port", str(port), "--dry-run")["would_create"]
        words = f"{shown['docker_run']} >/dev/null && {frame.until_ready(f'http://127.0.0.1:{port}')}"
        before = self._count()
        try:
            run = frame.timed(["sh", "-c", words])
            calls = None if before is None else (self._count() or 0) - before
            return run.start(frame.container_running_since(shown["name"]), calls)
        finally:
            frame.timed(["docker", "rm", "--force", "--volumes", shown["name"]])

    def _count(self) -> int | None:
        return None if self._relay is None else self._relay.count

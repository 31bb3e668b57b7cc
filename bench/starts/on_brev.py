"""brev: start_service.py against the brev command by hand, both on the double of Brev that the tests use.

By hand is what the published snippets do: list the instances, run the container over `brev exec`, ask ssh for the
address, then curl. The double's commands take a fraction of a second where Brev's take seconds, so what counts is how
many there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import brev_double
from brev_double import BrevDouble
from starts import frame

_OPTIONS = ("--instance", "mine", "--reach", "direct")


class Brev:
    """The smollm2 image on an instance of the double, which is up."""

    name, client, unit = "brev (double)", "brev + curl", "brev commands"

    def __init__(self) -> None:
        self._brev = BrevDouble()

    def missing(self) -> str:
        """The double's instances are this machine's Docker."""
        return frame.image_missing(brev_double.IMAGE)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Brev with one instance."""
        with tempfile.TemporaryDirectory() as folder, brev_double.double_in(Path(folder, "brev")) as self._brev:
            self._brev.add("mine")
            with mock.patch.dict(os.environ, {"IMAGE_SMOLLM2": brev_double.IMAGE}):
                yield

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """They are always counted."""
        yield

    def ours(self) -> frame.Start:
        """start_service.py, which returns when the service is ready."""
        before = self._count()
        run = frame.timed(frame.command("start_service", *self._wanted()))
        calls, job_id = self._count() - before, json.loads(run.printed)["job_id"]
        start = run.start(frame.container_running_since(job_id), calls)
        frame.script("stop_service", "--job-id", job_id)
        return start

    def by_hand(self) -> frame.Start:
        """The same container; the image is there, and docker run would fetch it if not."""
        wanted = self._wanted()
        planned = frame.script("start_service", *wanted, "--dry-run")
        _, network, run_it = planned["would_create"]["on_the_instance"]
        words = f"""set -e
            brev ls --json >/dev/null
            brev exec mine {shlex.quote(f"{network} && {run_it}")} >/dev/null
            host=$(ssh -G mine | sed -n 's/^hostname //p')
            {frame.until_ready(f"http://$host:{wanted[-1]}")}"""
        before = self._count()
        try:
            run = frame.timed(["sh", "-c", words])
            return run.start(frame.container_running_since(planned["job_id"]), self._count() - before)
        finally:
            frame.timed(["docker", "rm", "--force", "--volumes", planned["job_id"]])

    def _wanted(self) -> tuple[str, ...]:
        return (*brev_double.LAUNCH, *_OPTIONS, "--host-port", str(frame.free_port()))

    def _count(self) -> int:
        return len(self._brev.get("calls"))

"""slurm: start_service.py against sbatch of the same job script, squeue, `ssh -L` and curl."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import slurm_cluster
from slurm_cluster import SlurmCluster
from starts import frame
from support import eventually

_WANTED = ("--platform", "slurm", *frame.SMOLLM2)


class Slurm:
    """The smollm2 service on a Slurm cluster of one node that is made for it; every ssh connection is noted."""

    name, client, unit = "slurm", "sbatch + squeue + ssh -L + curl", "ssh connections"

    def __init__(self) -> None:
        self._cluster = SlurmCluster()

    def missing(self) -> str:
        """Whether a cluster can be made."""
        if not all(map(shutil.which, ("docker", "ssh", "ssh-keygen"))):
            return "docker, ssh and ssh-keygen are needed"
        return slurm_cluster.why_not()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """A cluster, and before its `ssh` one that notes each connection."""
        with slurm_cluster.running(1) as cluster:
            self._cluster = cluster
            program = cluster.folder / "counting" / "ssh"
            program.parent.mkdir()
            program.write_text(
                f'#!/bin/sh\necho >>{shlex.quote(str(self._connections))}\nexec {cluster.folder}/bin/ssh "$@"\n'
            )
            program.chmod(0o755)
            path = f"{program.parent}{os.pathsep}{cluster.environ['PATH']}"
            with mock.patch.dict(os.environ, {**cluster.environ, "PATH": path}):
                yield

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """They are always counted."""
        yield

    def ours(self) -> frame.Start:
        """start_service.py, which returns when the service is ready."""
        self._connections.write_text("")
        run = frame.timed(frame.command("start_service", *_WANTED))
        start = run.start(self._running_since(), self._count())
        frame.script("stop_service", "--all")
        self._wait_until_idle()
        return start

    def by_hand(self) -> frame.Start:
        """Submit, ask twice a second until it runs, forward a port."""
        planned = frame.script("start_service", *_WANTED, "--dry-run")["would_create"]
        job = self._cluster.folder / "job.sh"
        job.write_text(planned["job_script"].replace("--output=log", "--output=/dev/null"))
        port, user = frame.free_port(), shlex.quote(slurm_cluster.USER)
        ssh = f"ssh -o BatchMode=yes -l {user} -i {shlex.quote(os.environ['SSH_KEY_PATH'])}"
        login = os.environ["SLURM_HOSTNAME"]
        words = f"""set -e
            job=$({ssh} {login} "bash -lc 'sbatch --parsable'" <{shlex.quote(str(job))})
            while set -- $({ssh} -n {login} "squeue -h -j $job -o '%T %N'"); [ "$1" != RUNNING ]; do sleep 0.5; done
            {ssh} -f -N -n -L 127.0.0.1:{port}:$2:8080 {login} >/dev/null 2>&1
            {frame.until_ready(f"http://127.0.0.1:{port}")}"""
        self._connections.write_text("")
        try:
            run = frame.timed(["sh", "-c", words])
            return run.start(self._running_since(), self._count())
        finally:
            for tunnel in self._cluster.tunnels():
                psutil.Process(tunnel).terminate()
            self._cluster.slurm(f"scancel --user {user}")
            self._wait_until_idle()

    @property
    def _connections(self) -> Path:
        return self._cluster.folder / "connections"

    def _count(self) -> int:
        return len(self._connections.read_text().splitlines())

    def _running_since(self) -> float:
        """When the node launched the last job: squeue and its like know whole seconds."""
        log = self._cluster.slurm("cat /var/log/slurmd.log")
        return frame.utc(re.findall(r"^\[(.*?)\] Launching batch", log, re.MULTILINE)[-1])

    def _wait_until_idle(self) -> None:
        eventually(lambda: not self._cluster.jobs(), timeout=60, every=0.2)

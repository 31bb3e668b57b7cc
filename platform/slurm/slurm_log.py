"""The log of a job: the file that Slurm writes its output to, read on a login host."""

from __future__ import annotations

from collections.abc import Iterator

import slurm_programs as programs
import slurm_ssh
from slurm_connection import Cluster

from inference_service.errors import ToolError

_NO_LOG = 2


def lines(cluster: Cluster, job_id: str, tail: int | None, follow: bool) -> Iterator[str]:
    """The last `tail` lines (None: all); with `follow`, until the job ends.

    Raises:
        ToolError: the login host cannot be reached, or there is no log (yet).
    """
    if follow:
        with slurm_ssh.streaming(cluster, programs.follow(job_id, tail)) as stream:
            yield from stream
        return
    answer = slurm_ssh.run(cluster, programs.log(job_id, tail))
    if answer.status == _NO_LOG:
        raise ToolError(
            "no_log",
            f"the job of {job_id} has written no log: it has not begun, or its folder was removed",
            f"python scripts/wait_ready.py --job-id {job_id} says what it waits for",
        )
    if answer.status != 0:
        raise ToolError("log_unreadable", f"{answer.host}: {answer.errors}", "try again")
    yield from answer.output.splitlines()

"""What Slurm says of a job, in our words: from squeue while the scheduler knows it, then sacct, then scontrol.

Formats and states: the manual pages of squeue, sacct and scontrol. sacct annotates and truncates states ("CANCELLED by
1000", "CANCELLED+"); where accounting is off it says so and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slurm_script import EXPLAINED

from inference_service.contracts import PlatformStatus, State

_PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
            "SUSPENDED", "STOPPED")  # fmt: skip
_RUNNING = ("RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT")
_EXITED = ("COMPLETED", "COMPLETING", "CANCELLED")
_FAILED = {
    "FAILED": "the job failed",
    "TIMEOUT": "it ran into its time limit: start it with more --max-hours, or in a partition that allows more",
    "DEADLINE": "its deadline passed",
    "NODE_FAIL": "its node failed: start it again",
    "BOOT_FAIL": "its node did not boot: start it again",
    "OUT_OF_MEMORY": "it used more memory than the job was given: start it with more --mem",
    "PREEMPTED": "a job of higher priority took its place: start it again, or in another partition",
    "REVOKED": "another cluster took the job over",
    "LAUNCH_FAILED": "Slurm could not launch it",
    "RECONFIG_FAIL": "its node could not be reconfigured",
}
_UNREACHABLE = re.compile(r"unable to contact slurm|connection refused|socket timed out|connection timed out", re.I)
_GONE = re.compile(r"invalid job id", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """A job as Slurm describes it: its state in full, the node it has, and why it is in that state.

    `expected_start` is the scheduler's guess of when a pending job starts, in the cluster's own time; empty: none.
    """

    job_id: str
    state: str
    node: str = ""
    reason: str = ""
    expected_start: str = ""
    exit_code: int | None = None

    def status(self) -> PlatformStatus:
        """What that means for the service."""
        if self.state in _PENDING:
            return PlatformStatus(State.PENDING, _pending(self))
        if self.state in _RUNNING:
            return PlatformStatus(State.RUNNING, f"on {self.node}" if self.node else "")
        if self.state in _EXITED:
            return PlatformStatus(State.EXITED, self._told(self.state))
        if self.state in _FAILED:
            return PlatformStatus(State.FAILED, self._told(f"{self.state}: {_FAILED[self.state]}"))
        return PlatformStatus(State.UNKNOWN, f"Slurm says {self.state!r}")

    def _told(self, words: str) -> str:
        told = f"Slurm job {self.job_id}: {words}"
        if self.state == "FAILED" and self.exit_code:
            explained = EXPLAINED.get(self.exit_code)
            told += f" with exit status {self.exit_code}" + (f": {explained}" if explained else "")
        return told


def from_squeue(line: str) -> Job | None:
    """The job of a line of `squeue -o '%i|%T|%N|%r|%S'`; None when it is none."""
    parts = line.strip().split("|")
    if len(parts) != 5 or not parts[0].isdigit():
        return None
    job_id, state, node, reason, start = parts
    return Job(job_id, full_state(state), node.strip(), _said(reason), _said(start))


def from_sacct(text: str) -> Job | None:
    """The job of `sacct -X -n -P -o JobIDRaw,State,ExitCode,NodeList`; None where accounting knows none, or is off."""
    jobs = [parts for line in text.splitlines() if len(parts := line.strip().split("|")) == 4 and parts[0].isdigit()]
    if not jobs:
        return None
    job_id, state, exit_code, node = jobs[-1]
    return Job(job_id, full_state(state), _said(node), exit_code=_exit_status(exit_code))


def from_scontrol(text: str) -> Job | None:
    """The job of `scontrol --oneliner show job`; None where the controller has forgotten it."""
    fields: Mapping[str, Any] = dict(re.findall(r"(\w+)=(\S*)", text))
    if not fields.get("JobId", "").isdigit() or "JobState" not in fields:
        return None
    return Job(
        fields["JobId"],
        full_state(fields["JobState"]),
        _said(fields.get("NodeList", "")),
        _said(fields.get("Reason", "")),
        exit_code=_exit_status(fields.get("ExitCode", "")),
    )


def full_state(text: str) -> str:
    """A state without its annotation: "CANCELLED by 1000" and "CANCELLED+" are CANCELLED, "OUT_OF_ME+" is in full."""
    word = text.split()[0] if text.split() else ""
    if not word.endswith("+"):
        return word
    begun = word[:-1]
    return next((state for state in (*_PENDING, *_RUNNING, *_EXITED, *_FAILED) if state.startswith(begun)), begun)


def is_gone(complaint: str) -> bool:
    """Whether squeue complains that the scheduler does not know the job (any more)."""
    return bool(_GONE.search(complaint))


def is_unreachable(complaint: str) -> bool:
    """Whether one of Slurm's commands complains that its daemon does not answer, which says nothing of the job."""
    return bool(_UNREACHABLE.search(complaint))


def _pending(job: Job) -> str:
    told = f"Slurm job {job.job_id} is {job.state.lower().replace('_', ' ')}"
    told += f" ({job.reason})" if job.reason else ""
    return told + (f", expected to start at {job.expected_start} (the cluster's time)" if job.expected_start else "")


def _said(text: str) -> str:
    return "" if text.strip() in ("None", "N/A", "(null)", "Unknown", "None assigned") else text.strip()


def _exit_status(text: str) -> int | None:
    status = text.partition(":")[0]
    return int(status) if status.isdigit() else None

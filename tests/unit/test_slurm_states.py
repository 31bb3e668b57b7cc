"""Slurm's words for a job's state, as squeue, sacct and scontrol of Slurm 20.11 to 26.05 print them."""

from __future__ import annotations

import pytest
import slurm_states
from slurm_states import Job

from inference_service.contracts import State

# One line of `scontrol --oneliner show job`, Slurm 26.05, shortened.
SCONTROL = (
    "JobId=17 JobName=tao-5b3e UserId=tao(2000) Priority=1 Account=(null) JobState={state} Reason={reason} "
    "Dependency=(null) Requeue=0 ExitCode={code} TimeLimit=02:00:00 Partition=main NodeList={node} BatchHost=n1 "
    "SubmitLine=sbatch --parsable Comment=tao-job-id=5b3e,tao-network-arch=smollm2 StdOut=/home/tao/log"
)


def test_a_running_job_has_its_node() -> None:
    job = slurm_states.from_squeue("17|RUNNING|n1|None|2026-11-24T10:00:00")
    assert job is not None
    assert (job.job_id, job.node, job.status().state) == ("17", "n1", State.RUNNING)


def test_a_pending_job_says_why_and_until_when() -> None:
    job = slurm_states.from_squeue("17|PENDING||Resources|2026-11-25T03:00:00")
    assert job is not None
    status = job.status()
    assert status.state is State.PENDING
    assert "Resources" in status.reason
    assert "2026-11-25T03:00:00" in status.reason
    assert not status.dead


def test_a_pending_job_without_a_forecast_promises_none() -> None:
    job = slurm_states.from_squeue("17|PENDING||(Nodes required for job are DOWN, DRAINED or reserved)|N/A")
    assert job is not None
    assert "expected" not in job.status().reason
    assert "DRAINED" in job.status().reason


@pytest.mark.parametrize("line", ["", "slurm_load_jobs error: Invalid job id specified", "a|b|c|d|e", "1|2"])
def test_what_is_no_job_is_none(line: str) -> None:
    assert slurm_states.from_squeue(line) is None


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("NODE_FAIL", "NODE_FAIL"),
        ("TIMEOUT", "TIMEOUT"),
        ("", ""),
    ],
)
def test_an_annotated_or_truncated_state_is_read_in_full(text: str, state: str) -> None:
    assert slurm_states.full_state(text) == state


@pytest.mark.parametrize(
    ("state", "ours", "told"),
    [
        ("COMPLETED", State.EXITED, "COMPLETED"),
        ("CANCELLED by 2000", State.EXITED, "CANCELLED"),
        ("FAILED", State.FAILED, "FAILED"),
        ("TIMEOUT", State.FAILED, "--max-hours"),
        ("OUT_OF_ME+", State.FAILED, "--mem"),
        ("NODE_FAIL", State.FAILED, "node failed"),
        ("PREEMPTED", State.FAILED, "priority"),
    ],
)
def test_every_end_is_told_apart(state: str, ours: State, told: str) -> None:
    job = slurm_states.from_sacct(f"17|{state}|0:0|n1")
    assert job is not None
    assert job.status().state is ours
    assert job.status().dead
    assert told in job.status().reason


def test_the_last_of_several_accounting_records_counts() -> None:
    job = slurm_states.from_sacct("17|NODE_FAIL|0:0|n1\n17|COMPLETED|0:0|n2\n")
    assert job is not None
    assert job.state == "COMPLETED"


def test_accounting_that_is_off_knows_no_job() -> None:
    assert slurm_states.from_sacct("Slurm accounting storage is disabled") is None


def test_the_controller_tells_the_exit_status_and_what_it_means() -> None:
    job = slurm_states.from_scontrol(SCONTROL.format(state="FAILED", reason="NonZeroExitCode", code="97:0", node="n1"))
    assert job is not None
    assert job.status().state is State.FAILED
    assert "exit status 97" in job.status().reason
    assert "--exclude" in job.status().reason


def test_a_job_that_the_controller_has_forgotten_is_none() -> None:
    assert slurm_states.from_scontrol("slurm_load_jobs error: Invalid job id specified") is None


def test_a_state_that_nobody_knows_is_no_verdict() -> None:
    assert Job("17", "ENTANGLED").status().state is State.UNKNOWN


@pytest.mark.parametrize(
    "complaint",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
    ],
)
def test_a_controller_that_does_not_answer_is_told_from_a_job_that_is_gone(complaint: str) -> None:
    assert slurm_states.is_unreachable(complaint)
    assert not slurm_states.is_unreachable("slurm_load_jobs error: Invalid job id specified")

"""The jobs of a cluster: submitted exactly once, asked about, cancelled, listed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import slurm_programs as programs
import slurm_ssh
import slurm_states
from slurm_connection import Cluster
from slurm_labels import job_name, parse
from slurm_ssh import Answer, ConnectionCut
from slurm_states import Job

from inference_service.contracts import PlatformStatus, Progress, Report, State
from inference_service.errors import ToolError

# Slurm kills what ignores the signal after KillWait, 30 s by default.
_STOP_SECONDS = 60
_SUBMIT_TIMEOUT_SECONDS = 120
_FIND_SECONDS = 45
_SUBMISSIONS = 3
_NUMBER = re.compile(r"^job (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Listed:
    """One job of ours, with the labels of its comment."""

    job: Job
    labels: dict[str, str]


def submit(cluster: Cluster, job_id: str, script: str, env_file: str, report: Report) -> str:
    """Slurm's number of the one job that now runs or waits: where an answer is lost, it is looked for before a new try.

    Raises:
        ToolError: Slurm refuses the job, or no login host can be reached; nothing was left there.
    """
    secrets, text = env_file.encode(), script.encode()
    program = programs.submit(job_id, len(secrets), len(text))
    for _ in range(_SUBMISSIONS):
        try:
            answer = slurm_ssh.run(cluster, program, secrets + text, _SUBMIT_TIMEOUT_SECONDS, repeatable=False)
            if found := _NUMBER.search(answer.output):
                return found[1]
            if answer.status == programs.REFUSED:
                raise _refused(answer)
            lost = "sbatch did not say which job it made"
            if answer.status == programs.TAKEN:
                lost = "an earlier submission, of which no answer came, may be at it"
        except ConnectionCut as cut:
            lost = cut.message
        report(Progress("submitting", f"{lost}; looking for a job named {job_name(job_id)}"))
        try:
            number = find(cluster, job_id)
        except ToolError as error:
            raise ToolError(
                "submit_unknown",
                f"whether the job of {job_id} was submitted is not known: {lost}, and then {error.message}",
                "python scripts/registry.py reconcile finds it, should it have been",
            ) from error
        if number is not None:
            return number
    raise ToolError(
        "submit_lost",
        f"the job of {job_id} could not be submitted: {lost}",
        "look at the connection to the login host, then start it again",
    )


def find(cluster: Cluster, job_id: str) -> str | None:
    """Slurm's number of the service's job, whatever became of it since; None when it was never submitted.

    Raises:
        ToolError: the cluster cannot be asked.
    """
    answer = slurm_ssh.run(cluster, programs.find(job_id, _FIND_SECONDS), timeout=_FIND_SECONDS + 30)
    if answer.status != 0:
        raise _slurm_error(answer)
    found = _NUMBER.search(answer.output)
    return found[1] if found else None


def ask(cluster: Cluster, job_id: str, number: str | None, patience: int = 0) -> Job | PlatformStatus:
    """The job as Slurm describes it, else what is to be said of one that it does not know.

    `patience` (seconds): how long to wait for a pending job to begin.

    Raises:
        ToolError: no login host can be reached.
    """
    answer = slurm_ssh.run(cluster, programs.state(job_id, number, patience), timeout=60 + patience)
    known, gone, records = answer.output.partition("\ngone\n")
    lines = [job for line in known.splitlines() if (job := slurm_states.from_squeue(line))]
    if lines:
        # The second line is squeue --start's, which guesses when a pending job begins.
        return replace(lines[0], expected_start=lines[-1].expected_start)
    if not gone:
        return PlatformStatus(State.UNKNOWN, known.strip() or answer.errors)
    accounting, _, controller = records.partition("scontrol\n")
    return _ended(accounting, controller)


def stop(cluster: Cluster, job_id: str, number: str | None) -> None:
    """Cancel the service's job, wait for its end and remove its folder; a job that is gone is no error.

    Raises:
        ToolError: Slurm cannot be asked, or the job does not end.
    """
    answer = slurm_ssh.run(cluster, programs.stop(job_id, number, _STOP_SECONDS), timeout=_STOP_SECONDS + 30)
    if answer.status != 0:
        raise _slurm_error(answer)


def listed(cluster: Cluster) -> list[Listed]:
    """The user's jobs that carry our labels, pending ones included.

    Raises:
        ToolError: the cluster cannot be asked.
    """
    answer = slurm_ssh.run(cluster, programs.discover())
    if answer.status != 0:
        raise _slurm_error(answer)
    found = []
    for line in answer.output.splitlines():
        fields, _, comment = line.rpartition("|")
        job = slurm_states.from_squeue(fields)
        if job is not None:
            found.append(Listed(job, parse(comment)))
    return found


def _ended(accounting: str, controller: str) -> Job | PlatformStatus:
    by_sacct, by_scontrol = slurm_states.from_sacct(accounting), slurm_states.from_scontrol(controller)
    for job in (by_sacct, by_scontrol):
        # Accounting may lag behind the scheduler, which has just said that the job is over.
        if job is not None and job.status().dead:
            return job
    if by_sacct or by_scontrol:
        return by_scontrol or by_sacct or PlatformStatus(State.UNKNOWN)
    if slurm_states.is_unreachable(controller):
        return PlatformStatus(State.UNKNOWN, controller.strip())
    return PlatformStatus(State.EXITED, "Slurm does not know its job (any more)")


def _refused(answer: Answer) -> ToolError:
    told = " ".join(line.removeprefix("sbatch: error: ").strip() for line in answer.errors.splitlines()[-3:])
    if "command not found" in told:
        return ToolError(
            "slurm_missing", f"{answer.host} has no sbatch: {told}", "correct SLURM_HOSTNAME: it is no login host"
        )
    lowered = told.lower()
    fix = "correct the job's options; --dry-run shows the job script"
    if slurm_states.is_unreachable(told):
        fix = "Slurm's controller does not answer: try again later, or ask the site"
    elif "partition" in lowered:
        fix = f"sinfo on {answer.host} lists the partitions: --partition NAME"
    elif "account" in lowered:
        fix = f"sacctmgr show associations user=$USER on {answer.host} lists the accounts: --account NAME"
    elif "node configuration is not available" in lowered or "gres" in lowered:
        fix = f"sinfo -o '%P %G %c %m' on {answer.host} lists what the nodes have: fewer --num-gpus, --cpus or --mem"
    elif "time" in lowered:
        fix = f"sinfo -o '%P %l' on {answer.host} lists the partitions' limits: fewer --max-hours"
    return ToolError("sbatch_refused", f"Slurm refuses the job: {told}", fix)


def _slurm_error(answer: Answer) -> ToolError:
    told = " ".join(answer.errors.splitlines()[-2:]) or answer.output.strip() or f"status {answer.status}"
    return ToolError("slurm_error", f"Slurm on {answer.host} says: {told}", f"look there: ssh {answer.host} sinfo")

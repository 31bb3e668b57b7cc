"""The driver against login hosts whose Slurm says what the end-to-end cluster's never does: accounting that is on, lost
answers, daemons that are away. The commands' words are those of Slurm 20.11 to 26.05."""

from __future__ import annotations

import dataclasses
import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
import slurm_connection
import slurm_jobs
import slurm_programs
import slurm_ssh
from slurm_connection import Cluster
from slurm_states import Job
from support import eventually

from inference_service.contracts import PlatformStatus, Progress, ServiceEntry, State
from inference_service.errors import BadInput, ToolError

JOB_ID = "5b3e0000-0000-4000-8000-000000000001"
DOUBLE = Path(__file__).parent.parent / "doubles" / "slurm_login"
INVALID = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
AWAY = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


class Login:
    """A login host's home folder and Slurm commands."""

    def __init__(self, folder: Path) -> None:
        self.home, self.commands = folder / "login", folder / "commands"
        self.home.mkdir()
        self.commands.mkdir()
        profile = f"echo Welcome to the cluster; export PATH={shlex.quote(str(self.commands))}:$PATH\n"
        (self.home / ".bash_profile").write_text(profile)
        self.says("squeue", "")
        self.says("scancel", "")
        self.says("sbatch", "cat >~/submitted; echo '17;cluster'")
        self.says("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
        self.says("scontrol", INVALID)

    def says(self, command: str, script: str) -> None:
        """That command of Slurm is this shell script, and its arguments are noted."""
        file = self.commands / command
        file.write_text(f'#!/bin/bash\necho "$@" >>~/{command}.arguments\n{script}\n')
        file.chmod(0o755)

    def asked(self, command: str) -> str:
        file = self.home / f"{command}.arguments"
        return file.read_text() if file.exists() else ""

    @property
    def folder(self) -> Path:
        return self.home / ".tao-run-inference-service" / JOB_ID

    def hosts(self) -> list[str]:
        file = self.home / "hosts"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Login:
    monkeypatch.setenv("PATH", f"{DOUBLE}:{os.environ['PATH']}")
    made = Login(tmp_path)
    monkeypatch.setenv("LOGIN_HOME", str(made.home))
    monkeypatch.setattr(slurm_ssh, "_answered", {})
    return made


CLUSTER = Cluster(("login1",), "tao")


def submit(cluster: Cluster = CLUSTER, env_file: str = "", said: list[Progress] | None = None) -> str:
    return slurm_jobs.submit(
        cluster, JOB_ID, "#!/bin/bash\ntrue\n", env_file, (said if said is not None else []).append
    )


def test_a_job_is_submitted_by_standard_input_and_what_a_login_shell_prints_is_not_its_answer(login: Login) -> None:
    assert submit() == "17"
    assert login.asked("sbatch") == "--parsable\n"
    assert (login.home / "submitted").read_text() == "#!/bin/bash\ntrue\n"
    assert not (login.folder / "env").exists()
    assert not (login.folder / "submitter").exists()


def test_secrets_are_in_a_file_of_the_user_s_alone(login: Login) -> None:
    submit(env_file="x='hf_geheim é'\n")
    assert (login.folder / "env").read_text() == "x='hf_geheim é'\n"
    assert (login.folder / "env").stat().st_mode & 0o777 == 0o600
    assert login.folder.stat().st_mode & 0o777 == 0o700


def test_what_slurm_refuses_leaves_nothing_and_is_quoted(login: Login) -> None:
    login.says("sbatch", "echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1")
    with pytest.raises(ToolError) as refused:
        submit(env_file="secret\n")
    assert refused.value.type == "sbatch_refused"
    assert "invalid partition specified: nowhere" in refused.value.message
    assert "--partition" in refused.value.fix
    assert not login.folder.exists()


def test_a_host_without_slurm_is_no_login_host(login: Login) -> None:
    (login.commands / "sbatch").unlink()
    with pytest.raises(ToolError) as refused:
        submit()
    assert refused.value.type == "slurm_missing"


def test_an_empty_answer_of_sbatch_is_looked_up_by_the_exact_name_before_anything_is_submitted_again(
    login: Login,
) -> None:
    login.says("sbatch", "cat >/dev/null")
    login.says("squeue", f'case "$*" in *"--name=tao-{JOB_ID}"*) echo 23;; esac')
    said: list[Progress] = []
    assert submit(said=said) == "23"
    assert len(login.asked("sbatch").splitlines()) == 1
    assert f"tao-{JOB_ID}" in said[0].message


def test_an_empty_answer_without_such_a_job_is_submitted_once_more(login: Login) -> None:
    login.says("sbatch", "cat >/dev/null; [ ! -e ~/again ] || echo 24; touch ~/again")
    assert submit() == "24"
    assert len(login.asked("sbatch").splitlines()) == 2


def test_of_two_submissions_one_of_which_was_believed_lost_one_is_made(login: Login) -> None:
    # The first is slow, and its connection has long been given up when the second comes, by another login host.
    login.says("squeue", f'case "$*" in *"--name=tao-{JOB_ID}"*) grep -qs 2 ~/sbatch.ended && echo 17;; esac; true')
    login.says("sbatch", "cat >/dev/null; sleep 2; echo 2 >~/sbatch.ended; echo 17")
    program = slurm_ssh.wrapped(slurm_programs.submit(JOB_ID, 0, 3)).encode() + b"abc"
    slow = subprocess.Popen(
        slurm_ssh.command(CLUSTER, "login1", run="bash -ls"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert slow.stdin is not None
    slow.stdin.write(program)
    slow.stdin.close()
    eventually(lambda: login.asked("sbatch"))
    said: list[Progress] = []
    assert submit(Cluster(("login2",)), said=said) == "17"
    assert slow.wait() == 0
    assert "an earlier submission" in said[0].message
    assert len(login.asked("sbatch").splitlines()) == 1


def test_what_a_submission_left_that_died_on_the_way_is_no_obstacle(login: Login) -> None:
    login.folder.mkdir(parents=True)
    (login.folder / "submitter").write_text(f"{socket.gethostname()} 999999999\n")
    (login.folder / "env").write_text("secret\n")
    assert submit() == "17"
    assert not (login.folder / "env").exists()


def test_a_submission_whose_fate_cannot_be_found_out_is_said_to_be_unknown(login: Login) -> None:
    login.says("sbatch", "cat >/dev/null")
    login.says("squeue", AWAY)
    with pytest.raises(ToolError) as unknown:
        submit()
    assert unknown.value.type == "submit_unknown"
    assert "reconcile" in unknown.value.fix
    assert len(login.asked("sbatch").splitlines()) == 1


def ask(number: str | None = "17") -> Job | PlatformStatus:
    return slurm_jobs.ask(CLUSTER, JOB_ID, number)


def status(number: str | None = "17") -> PlatformStatus:
    found = ask(number)
    return found.status() if isinstance(found, Job) else found


def test_while_the_scheduler_knows_the_job_nobody_else_is_asked(login: Login) -> None:
    login.says("squeue", "echo '17|RUNNING|n3|None|2026-11-24T10:00:00'")
    assert status() == PlatformStatus(State.RUNNING, "on n3")
    assert login.asked("sacct") == login.asked("scontrol") == ""


def test_a_pending_job_s_expected_start_is_asked_for(login: Login) -> None:
    login.says(
        "squeue",
        'start=N/A; case "$*" in *--start*) start=2026-11-25T03:00:00;; esac; echo "17|PENDING||Priority|$start"',
    )
    assert status().state is State.PENDING
    assert "Priority" in status().reason
    assert "expected to start at 2026-11-25T03:00:00" in status().reason


def test_after_the_scheduler_accounting_is_asked(login: Login) -> None:
    login.says("squeue", INVALID)
    login.says("sacct", "echo '17|OUT_OF_MEMORY|0:125|n3'")
    assert status().state is State.FAILED
    assert "--mem" in status().reason
    assert "-X -n -P" in login.asked("sacct")


def test_with_accounting_off_the_controller_is_asked(login: Login) -> None:
    login.says("scontrol", "echo 'JobId=17 JobName=x JobState=CANCELLED Reason=None ExitCode=0:15 NodeList=n3'")
    assert status() == PlatformStatus(State.EXITED, "Slurm job 17: CANCELLED")


def test_accounting_that_lags_behind_is_not_believed_against_the_controller(login: Login) -> None:
    login.says("sacct", "echo '17|RUNNING|0:0|n3'")
    login.says("scontrol", "echo 'JobId=17 JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0 NodeList=n3'")
    assert status().state is State.FAILED


def test_a_job_that_nobody_knows_has_ended(login: Login) -> None:
    assert status().state is State.EXITED


def test_a_controller_that_is_away_says_nothing_of_the_job(login: Login) -> None:
    login.says("squeue", AWAY)
    assert status().state is State.UNKNOWN
    assert "Unable to contact" in status().reason


def test_of_a_job_that_has_ended_no_secrets_are_left(login: Login) -> None:
    submit(env_file="secret\n")
    assert (login.folder / "env").exists()
    status()
    assert not (login.folder / "env").exists()


def test_a_job_without_a_known_number_is_found_by_its_name(login: Login) -> None:
    login.says("squeue", "echo '17|RUNNING|n3|None|2026-11-24T10:00:00'")
    assert status(None).state is State.RUNNING
    assert f"--name=tao-{JOB_ID}" in login.asked("squeue")


def test_a_login_host_that_refuses_is_passed_over_and_the_one_that_answered_is_asked_first_next_time(
    login: Login,
) -> None:
    cluster = Cluster(("down1", "login2", "login3"))
    slurm_ssh.run(cluster, ":")
    slurm_ssh.run(cluster, ":")
    assert login.hosts() == ["login2", "login2"]


def test_when_every_login_host_refuses_each_reason_is_said(login: Login) -> None:
    with pytest.raises(ToolError, match=r"down1: .*refused; down2: .*refused") as refused:
        slurm_ssh.run(Cluster(("down1", "down2")), ":")
    assert refused.value.type == "login_unreachable"


def test_a_program_that_is_cut_off_is_run_again_only_where_that_does_no_harm(login: Login) -> None:
    cut = 'echo x >>~/ran; [ "$(wc -l <~/ran)" -gt 1 ] || kill -9 $$; echo whole'
    assert slurm_ssh.run(CLUSTER, cut).output.strip() == "whole"
    (login.home / "ran").unlink()
    with pytest.raises(slurm_ssh.ConnectionCut):
        slurm_ssh.run(CLUSTER, cut, repeatable=False)
    assert (login.home / "ran").read_text() == "x\n"


def test_of_a_program_that_arrives_in_half_nothing_runs(login: Login) -> None:
    whole = slurm_ssh.wrapped("touch ~/ran")
    for end in range(1, whole.index("tao_main; "), 7):
        line = slurm_ssh.command(CLUSTER, "login1", run="bash -ls")
        subprocess.run(line, input=whole[:end].encode(), capture_output=True, timeout=20)
        assert not (login.home / "ran").exists(), whole[:end]


def test_data_that_arrives_in_half_is_not_submitted(login: Login) -> None:
    answer = slurm_ssh.run(CLUSTER, slurm_programs.submit(JOB_ID, 6, 500), b"secret#!/bin/bash\n")
    assert answer.status == slurm_programs.INCOMPLETE
    assert login.asked("sbatch") == ""
    assert not login.folder.exists()


def test_stop_that_slurm_does_not_answer_is_an_error(login: Login) -> None:
    login.says("scancel", "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ToolError, match="Unable to contact slurm controller"):
        slurm_jobs.stop(CLUSTER, JOB_ID, "17")


def test_a_service_s_own_cluster_is_asked_and_not_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_HOSTNAME", "elsewhere")
    cluster = Cluster(("a", "b"), "tao", "/key")
    entry = ServiceEntry(JOB_ID, "smollm2", "slurm", "http://localhost:8080", extras=cluster.fields())
    assert slurm_connection.of_entry(entry) == cluster
    assert slurm_connection.of_entry(dataclasses.replace(entry, extras={})) == Cluster(("elsewhere",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_HOSTNAME", ""),
        ("SLURM_HOSTNAME", "-oProxyCommand=id"),
        ("SLURM_USER", "-x"),
        ("SSH_KEY_PATH", "/nowhere"),
    ],
)
def test_a_connection_that_cannot_be_is_refused_by_its_variable(name: str, value: str) -> None:
    with pytest.raises(BadInput) as refused:
        slurm_connection.from_environ({"SLURM_HOSTNAME": "login", name: value})
    assert name in refused.value.message

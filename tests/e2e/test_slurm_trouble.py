"""What goes wrong on a cluster: lost answers, killed tunnels, drained and failed nodes, full queues, ended jobs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from slurm_cluster import USER, SlurmCluster
from support import SCRIPTS, eventually, run_script

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
START = ("--platform", "slurm", "--network-arch", "smollm2", "--model-path", MODEL)
QUESTION = ("--prompt", "What is the capital of France?", "--set", "temperature=0", "--accept-defaults")


def start(*options: str) -> dict[str, Any]:
    document: dict[str, Any] = run_script("start_service", *START, *options, timeout=180).document
    return document


def services() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_script("registry", "list").document["services"]
    return found


def fails(script: str, *arguments: str, status: int = 1) -> dict[str, Any]:
    error: dict[str, Any] = run_script(script, *arguments, expect=status, timeout=180).document["error"]
    return error


def drain(slurm: SlurmCluster) -> None:
    slurm.slurm("scontrol update nodename=n[1-2] state=drain reason=maintenance")


def starter(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *START, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it never said {words!r}")


@pytest.mark.parametrize("moment", ["--tao-answer-begins--", "job "], ids=["before sbatch", "after sbatch"])
def test_an_answer_of_sbatch_that_is_lost_leads_to_one_job_and_not_to_two(slurm: SlurmCluster, moment: str) -> None:
    slurm.cut_next_ssh_when(moment)
    done = run_script("start_service", *START, timeout=180)
    assert slurm.was_cut()
    assert f"looking for a job named tao-{done.document['job_id']}" in done.stderr
    names = slurm.slurm("squeue --noheader --states=all --format=%j").split()
    assert names.count(f"tao-{done.document['job_id']}") == 1
    assert slurm.state(done.document["platform_job_id"]) == "RUNNING"
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]


def test_a_tunnel_that_was_killed_is_opened_again_by_the_next_request_which_says_so(slurm: SlurmCluster) -> None:
    start()
    (first,) = slurm.tunnels()
    psutil.Process(first).kill()
    asked = run_script("send_request", *QUESTION)
    assert "Paris" in asked.document["content"]
    assert "the ssh tunnel had ended and is open again" in asked.stderr
    (second,) = slurm.tunnels()
    assert services()[0]["tunnel_pid"] == second != first

    asked = run_script("send_request", *QUESTION)
    assert "tunnel" not in asked.stderr
    assert slurm.tunnels() == [second]


def test_two_requests_at_once_over_a_dead_tunnel_open_one(slurm: SlurmCluster) -> None:
    start()
    (first,) = slurm.tunnels()
    psutil.Process(first).kill()
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(run_script, "send_request", *QUESTION) for _ in range(3)]
        assert all("Paris" in answer.result().document["content"] for answer in answers)
    assert len(slurm.tunnels()) == 1
    assert services()[0]["tunnel_pid"] == slurm.tunnels()[0]


def test_a_port_that_a_stranger_took_while_the_tunnel_was_down_is_replaced_by_another(slurm: SlurmCluster) -> None:
    started = start()
    (tunnel,) = slurm.tunnels()
    psutil.Process(tunnel).kill()
    port = started["host_port"]
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    stranger = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: any(c.laddr.port == port for c in psutil.Process(stranger.pid).net_connections()))
        assert "Paris" in run_script("send_request", *QUESTION).document["content"]
    finally:
        stranger.kill()
        stranger.wait()
    entry = services()[0]
    assert entry["host_port"] != port
    assert entry["host_url"] == f"http://localhost:{entry['host_port']}"


def test_a_connection_that_is_cut_in_the_middle_of_a_request_is_said_and_the_next_one_is_answered(
    slurm: SlurmCluster,
) -> None:
    start()
    long = ("--prompt", "Tell a long story.", "--set", "max_tokens=2000", "--accept-defaults")
    command = [sys.executable, str(SCRIPTS / "send_request.py"), *long]
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    read_until(asking, "sending:")
    time.sleep(0.3)  # The request is to be on its way: nothing on this side tells when it has arrived.
    (tunnel,) = slurm.tunnels()
    psutil.Process(tunnel).kill()
    told, _ = asking.communicate(timeout=60)
    assert asking.returncode == 1
    assert '"connection_lost"' in told
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]


def test_a_job_that_was_cancelled_behind_our_back_is_said_to_be(slurm: SlurmCluster) -> None:
    started = start()
    slurm.slurm(f"scancel {started['platform_job_id']}")
    eventually(lambda: slurm.jobs() == {})
    error = fails("wait_ready", "--timeout", "30")
    assert error["type"] == "service_died"
    assert "CANCELLED" in error["message"]
    assert any("listening on" in line for line in error["log_tail"])
    assert run_script("registry", "reconcile").document["gone"] == [started["job_id"]]
    run_script("stop_service", "--job-id", started["job_id"])
    assert services() == []
    assert slurm.left() == []


def test_a_job_that_waits_says_why_and_is_reached_once_it_runs(slurm: SlurmCluster) -> None:
    drain(slurm)
    started = start("--no-wait")
    job_id = started["job_id"]
    assert started["ready"] is False
    assert slurm.jobs() == {f"tao-{job_id}": "PENDING"}
    assert slurm.tunnels() == []
    error = fails("wait_ready", "--job-id", job_id, "--timeout", "4", status=4)
    assert "PENDING" in error["last_seen"]["platform"]
    assert "DRAINED" in error["last_seen"]["platform"]
    assert fails("service_logs", "--job-id", job_id)["type"] == "no_log"

    command = [sys.executable, str(SCRIPTS / "wait_ready.py"), "--job-id", job_id, "--timeout", "90"]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    read_until(waiting, "pending on slurm")
    slurm.mend()
    told, complaints = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, told + complaints
    assert "the ssh tunnel is open" in complaints
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]


def test_a_waiting_job_is_stopped_and_a_waiting_one_that_lost_its_registry_entry_is_found(slurm: SlurmCluster) -> None:
    drain(slurm)
    first, second = start("--no-wait"), start("--no-wait")
    run_script("registry", "remove", second["job_id"])
    assert run_script("registry", "reconcile").document["adopted"] == [second["job_id"]]
    run_script("stop_service", "--job-id", first["job_id"], "--job-id", second["job_id"])
    assert slurm.jobs() == {}


def test_a_full_cluster_says_when_the_job_is_expected_to_start(slurm: SlurmCluster) -> None:
    full = slurm.slurm(
        f"cd /tmp && runuser -u {USER} -- sbatch --parsable --nodes=2 --exclusive --time=30 --output=/dev/null"
        " --wrap='sleep 600'"
    )
    try:
        eventually(lambda: slurm.state(full) == "RUNNING")
        start("--no-wait")

        def forecast() -> bool:
            last_seen = fails("wait_ready", "--timeout", "2", status=4)["last_seen"]
            return "Resources" in last_seen["platform"] and "expected to start at 20" in last_seen["platform"]

        eventually(forecast, timeout=60)
    finally:
        slurm.slurm(f"scancel {full}")
        eventually(lambda: slurm.state(full) == "CANCELLED")


def test_a_node_that_fails_is_told_from_a_service_that_fails(slurm: SlurmCluster) -> None:
    started = start("--partition", "first")
    slurm.slurm("scontrol update nodename=n1 state=down reason=crash")
    eventually(lambda: slurm.state(started["platform_job_id"]) == "NODE_FAIL")
    slurm.mend()
    error = fails("wait_ready", "--timeout", "30")
    assert error["type"] == "service_died"
    assert "its node failed" in error["message"]


def test_a_job_that_ran_out_of_time_says_so(slurm: SlurmCluster) -> None:
    started = start("--max-hours", "0.01")
    assert "TimeLimit=00:01:00" in slurm.slurm(f"scontrol --oneliner show job {started['platform_job_id']}")
    eventually(lambda: slurm.state(started["platform_job_id"]) == "TIMEOUT", timeout=180, every=1)
    error = fails("wait_ready", "--timeout", "30")
    assert "TIMEOUT" in error["message"]
    assert "--max-hours" in error["message"]


def test_a_model_that_cannot_load_is_reported_with_its_log_and_leaves_nothing(slurm: SlurmCluster) -> None:
    error = fails("start_service", *START[:-1], "/nowhere/model.gguf")
    assert "/nowhere/model.gguf" in error["message"]
    assert error["log_tail"]
    assert services() == []
    assert slurm.jobs() == {}
    assert slurm.left() == []
    assert slurm.tunnels() == []


def test_a_login_host_that_does_not_let_us_in_is_passed_over(
    slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = slurm.nodes
    # Nothing listens on 127.0.0.9; n2 lets us in until the service runs.
    monkeypatch.setenv("SLURM_HOSTNAME", f"127.0.0.9,{second.address},{first.address}")
    start("--partition", "first")
    assert services()[0]["tunnel_login"] == second.address
    slurm.keep_out(second)
    (tunnel,) = slurm.tunnels()
    psutil.Process(tunnel).kill()
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]
    assert services()[0]["tunnel_login"] == first.address


def test_without_any_login_host_nothing_is_started_and_each_one_s_reason_is_said(
    slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_HOSTNAME", "127.0.0.9,no-such-host.invalid")
    error = fails("start_service", *START)
    assert error["type"] == "login_unreachable"
    assert "127.0.0.9: " in error["message"]
    assert "Connection refused" in error["message"]
    assert "no-such-host.invalid: " in error["message"]
    assert error["fix"]
    assert services() == []


def test_a_login_host_whose_key_is_not_known_is_not_trusted(slurm: SlurmCluster) -> None:
    known = slurm.folder / "known_hosts"
    before = known.read_text()
    try:
        known.write_text("")
        error = fails("start_service", *START)
        assert "Host key verification failed" in error["message"]
        assert "accept it once by hand" in error["fix"]
    finally:
        known.write_text(before)


@pytest.mark.parametrize("words", ["submitting", "submitted", "tunnel", "starting"])
def test_kill_9_of_start_service_loses_and_orphans_nothing(slurm: SlurmCluster, words: str) -> None:
    killed = starter()
    read_until(killed, words)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    def settled() -> bool:
        run_script("registry", "reconcile")
        registered = {f"tao-{entry['job_id']}" for entry in services() if entry["status"] == "running"}
        return set(slurm.jobs()) == registered and all(entry["status"] == "running" for entry in services())

    eventually(settled, timeout=30, every=0.5)
    if services():
        run_script("wait_ready", "--timeout", "60")
        assert "Paris" in run_script("send_request", *QUESTION).document["content"]
        assert len(slurm.tunnels()) == 1
    run_script("stop_service", "--all")


@pytest.mark.parametrize("words", ["submitting", "submitted", "tunnel"])
def test_an_interrupted_start_leaves_nothing(slurm: SlurmCluster, words: str) -> None:
    interrupted = starter()
    read_until(interrupted, words)
    interrupted.send_signal(signal.SIGINT)
    told, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, told
    left = {f"tao-{entry['job_id']}" for entry in services()}
    # Once it is registered, an interruption of the wait leaves it running and says so.
    assert set(slurm.jobs()) == left
    if left:
        assert "keeps running" in told
    else:
        # The job is gone; its container's helpers take a moment to notice.
        eventually(lambda: not slurm.left(), timeout=30)
        assert slurm.tunnels() == []

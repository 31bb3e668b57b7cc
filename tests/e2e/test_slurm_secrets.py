"""A service's secrets on a cluster: in its container, and nowhere else; in no file once the job has read them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import USER, SlurmCluster
from support import SCRIPTS, eventually, run_script

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
START = ("--platform", "slurm", "--network-arch", "smollm2", "--model-path", MODEL, "--env", "HF_TOKEN")
SECRET = "hf_plantedSecretValue0123456789"
FOLDERS = f"/home/{USER}/.tao-run-inference-service"
COMMAND_LINES = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' || true"


@pytest.fixture(autouse=True)
def planted(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)


def command_lines_here() -> bytes:
    lines = b""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines += file.read_bytes()
        except OSError:
            continue
    return lines


def test_a_secret_gets_into_the_container_and_into_nothing_else(slurm: SlurmCluster, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "start_service.py"), *START]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen, seen_there = b"", ""
    while starter.poll() is None:
        seen += command_lines_here()
        seen_there += "".join(node.run(COMMAND_LINES) for node in slurm.nodes)
    stdout, stderr = starter.communicate()
    assert starter.returncode == 0, stderr
    job_id, number = (json.loads(stdout)[name] for name in ("job_id", "platform_job_id"))

    node = next(node for node in slurm.nodes if node.run(f"pgrep --uid {USER} python3 || true"))
    environ = node.run(f"tr '\\0' '\\n' </proc/$(pgrep --uid {USER} --newest python3)/environ").splitlines()
    assert f"HF_TOKEN={SECRET}" in environ, "the service did not get the secret at all"
    assert slurm.first.run(f"ls {FOLDERS}/{job_id}").split() == ["job.sh", "log"]

    visible = {
        "command lines here": seen.decode(errors="replace"),
        "command lines there": seen_there,
        "start_service": stdout + stderr,
        "job": slurm.slurm(f"scontrol --details show job {number}; scontrol write batch_script {number} -"),
        "files there": slurm.first.run(f"cat {FOLDERS}/*/*"),
        "logs": run_script("service_logs", "--job-id", job_id).stdout,
    }
    visible |= {str(file): file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()}
    for where, text in visible.items():
        assert SECRET not in text, where
    assert slurm.first.run(f"grep --recursive --files-with-matches {SECRET} /home /tmp || true") == ""


def test_while_the_job_waits_its_secrets_are_the_user_s_alone_and_stop_removes_them(slurm: SlurmCluster) -> None:
    slurm.slurm("scontrol update nodename=n[1-2] state=drain reason=maintenance")
    job_id = run_script("start_service", *START, "--no-wait").document["job_id"]
    assert slurm.first.run(f"stat --format='%a %U' {FOLDERS}/{job_id}/env {FOLDERS}/{job_id}").splitlines() == [
        f"600 {USER}",
        f"700 {USER}",
    ]
    run_script("stop_service", "--job-id", job_id)
    assert slurm.left() == []


def test_secrets_of_a_job_that_was_cancelled_before_it_began_are_removed_by_the_next_look(slurm: SlurmCluster) -> None:
    slurm.slurm("scontrol update nodename=n[1-2] state=drain reason=maintenance")
    started = run_script("start_service", *START, "--no-wait").document
    slurm.slurm(f"scancel {started['platform_job_id']}")
    file = f"{FOLDERS}/{started['job_id']}/env"
    assert slurm.first.run(f"ls {file}") == file
    assert run_script("registry", "reconcile").document["gone"] == [started["job_id"]]
    assert slurm.first.run(f"ls {file} 2>/dev/null || true") == ""


def test_a_job_that_dies_at_once_leaves_no_secrets(slurm: SlurmCluster) -> None:
    error = run_script(
        "start_service", *START, env={"IMAGE_SMOLLM2": "/images/nowhere.sif"}, expect=1, timeout=120
    ).document["error"]
    assert error["type"] == "service_died"
    assert any("nowhere.sif" in line for line in error["log_tail"])
    eventually(lambda: slurm.left() == [])

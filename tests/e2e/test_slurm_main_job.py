"""The whole life cycle on a real Slurm cluster: an ordinary user's batch job, a real Apptainer container, real ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import ARCHIVE, SIF, USER, SlurmCluster
from support import SCRIPTS, eventually, run_script

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
START = ("--platform", "slurm", "--network-arch", "smollm2", "--model-path", MODEL)
QUESTION = ("--prompt", "What is the capital of France?", "--set", "temperature=0", "--accept-defaults")
# What a start needs of the environment, and no later command.
CONNECTION = ("SLURM_HOSTNAME", "SLURM_USER", "SSH_KEY_PATH", "SLURM_PARTITION", "SLURM_ACCOUNT", "IMAGE_SMOLLM2")


def start(*options: str, **keywords: Any) -> dict[str, Any]:
    document: dict[str, Any] = run_script("start_service", *START, *options, **{"timeout": 180, **keywords}).document
    return document


def entry_of(job_id: str) -> dict[str, Any]:
    entry: dict[str, Any] = run_script("registry", "show", job_id).document["services"][0]
    return entry


def test_a_service_is_started_asked_and_stopped_and_only_the_start_needs_the_cluster_s_name(
    slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start("--num-gpus", "1", "--max-hours", "1.5")
    job_id, number = started["job_id"], started["platform_job_id"]
    assert started["ready"] is True
    assert started["host_url"] == f"http://localhost:{started['host_port']}"
    assert slurm.jobs() == {f"tao-{job_id}": "RUNNING"}
    described = slurm.slurm(f"scontrol --oneliner show job {number}")
    assert f"UserId={USER}(" in described
    assert "TimeLimit=01:30:00" in described
    assert "TresPerNode=gres/gpu:1" in described
    assert f"tao-job-id={job_id}" in described

    for name in CONNECTION:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_HOSTNAME", "another.cluster.invalid")
    run_script("wait_ready", "--job-id", job_id, "--timeout", "30")
    answer = run_script("send_request", *QUESTION).document
    assert "Paris" in answer["content"]
    assert answer["job_id"] == job_id
    lines = run_script("service_logs", "--job-id", job_id, "--tail", "100").document["lines"]
    assert any(f"listening on http://0.0.0.0:8080 as {job_id}" in line for line in lines)
    assert len(run_script("service_logs", "--job-id", job_id, "--tail", "1").document["lines"]) == 1

    assert run_script("stop_service", "--job-id", job_id).document["stopped"] == [job_id]
    assert slurm.jobs() == {}
    assert slurm.state(number) == "CANCELLED"
    assert slurm.left() == []
    assert slurm.tunnels() == []
    run_script("stop_service", "--job-id", job_id, expect=None)


def test_gpus_are_the_ones_that_slurm_gave_the_job(slurm: SlurmCluster) -> None:
    number = start("--num-gpus", "2")["platform_job_id"]
    assert "gres/gpu:2" in slurm.slurm(f"scontrol --oneliner show job {number}")
    node = next(node for node in slurm.nodes if node.run(f"pgrep --uid {USER} python3 || true"))
    environ = node.run(f"tr '\\0' '\\n' </proc/$(pgrep --uid {USER} --newest python3)/environ")
    assert "CUDA_VISIBLE_DEVICES=0,1" in environ.splitlines()


def test_more_gpus_than_a_node_has_are_refused_by_slurm_in_its_own_words_and_nothing_stays(slurm: SlurmCluster) -> None:
    error = run_script("start_service", *START, "--num-gpus", "7", expect=1).document["error"]
    assert error["type"] == "sbatch_refused"
    assert "Requested node configuration is not available" in error["message"]
    assert "--num-gpus" in error["fix"]
    assert slurm.left() == []
    assert run_script("registry", "list").document["services"] == []


def test_two_services_started_at_once_are_two_jobs_with_two_tunnels_and_each_answers_for_itself(
    slurm: SlurmCluster,
) -> None:
    with ThreadPoolExecutor(2) as pool:
        # A node for each: the port on a node is always the same.
        starts = [pool.submit(start, "--exclude", node) for node in ("n1", "n2")]
        services = [one.result() for one in starts]
    assert len({service["host_port"] for service in services}) == 2
    assert len(slurm.tunnels()) == 2
    for service in services:
        answer = run_script("send_request", "--job-id", service["job_id"], *QUESTION).document
        assert "Paris" in answer["content"]
    run_script("send_request", *QUESTION, expect=3)


def test_a_second_service_on_one_node_is_told_that_the_port_there_is_taken(slurm: SlurmCluster) -> None:
    first = start("--partition", "first")
    second = run_script("start_service", *START, "--partition", "first", expect=1, timeout=120).document["error"]
    # Whichever is seen first: the answer of the other service, or the end of the job that found the port taken.
    assert second["type"] in ("foreign_service", "service_died")
    assert first["job_id"] in second["message"] or "exit status 97" in second["message"]
    assert list(slurm.jobs()) == [f"tao-{first['job_id']}"]
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]


def test_another_service_that_answers_on_the_node_is_known_by_its_job_id(slurm: SlurmCluster) -> None:
    first = start("--partition", "first")
    stranger = entry_of(first["job_id"])
    # A service whose job shares the node and whose tunnel therefore ends at the other's server.
    other = "5b3e0000-0000-4000-8000-000000000001"
    registry = Path(os.environ["TAO_INF_MS_STATE_FILE"])
    state = json.loads(registry.read_text())
    state[other] = {key: value for key, value in stranger.items() if key != "job_id"}
    registry.write_text(json.dumps(state))
    error = run_script("wait_ready", "--job-id", other, "--timeout", "20", expect=1).document["error"]
    assert error["type"] == "foreign_service"
    assert error["foreign_job_id"] == first["job_id"]
    run_script("registry", "remove", other)


def test_a_docker_archive_runs_and_a_checkpoint_of_the_cluster_is_mounted(
    slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_SMOLLM2", ARCHIVE)
    slurm.first.run(
        f"mkdir -p ~/ckpt && apptainer --quiet exec {SIF} sh -c"
        " 'cp $(find /opt/cache -name \"*.gguf\") ~/ckpt/model.gguf' 2>/dev/null",
        user=USER,
    )
    mount = f"/home/{USER}/ckpt:/ckpt"
    words = [*START[:-1], "/ckpt/model.gguf", "--mount", mount, "--timeout", "300"]
    started = run_script("start_service", *words, timeout=330).document
    assert started["model_path"] == "/ckpt/model.gguf"
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]
    log = "\n".join(run_script("service_logs", "--job-id", started["job_id"]).document["lines"])
    assert "/ckpt/model.gguf" in log


def test_pyxis_runs_it_where_srun_has_the_plugin(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SMOLLM2", "registry.example.com/team/smollm2:0.1.0")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_plantedSecretValue0123")
    with slurm.pyxis("registry.example.com#team/smollm2:0.1.0"):
        started = start("--env", "WANDB_API_KEY", "--env", "WANDB_PROJECT=a b")
        assert "Paris" in run_script("send_request", *QUESTION).document["content"]
        node = next(node for node in slurm.nodes if node.run(f"pgrep --uid {USER} python3 || true"))
        environ = node.run(f"tr '\\0' '\\n' </proc/$(pgrep --uid {USER} --newest python3)/environ").splitlines()
        assert "WANDB_API_KEY=wandb_plantedSecretValue0123" in environ
        assert "WANDB_PROJECT=a b" in environ
        run_script("stop_service", "--job-id", started["job_id"])
        refused = run_script("start_service", *START, "--runtime", "apptainer", "--dry-run").document
        assert "docker://registry.example.com/team/smollm2:0.1.0" in refused["would_create"]["job_script"]


def test_a_lost_registry_loses_no_service(slurm: SlurmCluster) -> None:
    started = start()
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [started["job_id"]]
    entry = entry_of(started["job_id"])
    for name in ("host_url", "platform_job_id", "model_path", "image"):
        assert entry[name] == started[name]
    assert "Paris" in run_script("send_request", *QUESTION).document["content"]
    assert len(slurm.tunnels()) == 1


def test_another_registry_s_services_are_left_alone(slurm: SlurmCluster, tmp_path: Path) -> None:
    start("--no-wait")
    another = {"TAO_INF_MS_STATE_FILE": str(tmp_path / "another.json")}
    assert run_script("registry", "reconcile", env=another).document["adopted"] == []


def test_preflight_tells_what_the_cluster_has_and_what_mends_what_it_lacks(
    slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = {check["name"]: check for check in run_script("preflight", "--platform", "slurm").document["checks"]}
    assert checks["slurm"]["found"].startswith("slurm-wlm ")
    assert "gpu:2 on " in checks["gpus"]["found"]
    assert "apptainer version" in checks["container runtime"]["found"]

    monkeypatch.setenv("SLURM_PARTITION", "nowhere")
    error = run_script("preflight", "--platform", "slurm", expect=1).document["error"]
    assert "there is no partition nowhere; there are: first, main" in error["message"]
    assert error["fix"].startswith("export SLURM_PARTITION=")

    monkeypatch.setenv("SLURM_USER", "nobody-here")
    error = run_script("preflight", "--platform", "slurm", expect=1).document["error"]
    assert "Permission denied" in error["message"]
    assert "ssh-copy-id" in error["fix"]


def test_the_log_is_followed_until_the_job_ends(slurm: SlurmCluster) -> None:
    started = start()
    command = [sys.executable, str(SCRIPTS / "service_logs.py"), "--job-id", started["job_id"], "--follow"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    assert "line" in json.loads(follower.stdout.readline())
    run_script("send_request", *QUESTION)
    slurm.slurm(f"scancel {started['platform_job_id']}")
    lines, told = follower.communicate(timeout=30)
    assert "chat completion: " in lines
    assert follower.returncode == 0, told
    eventually(lambda: not slurm.jobs())

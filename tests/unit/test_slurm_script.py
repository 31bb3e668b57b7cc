"""The job script, run by bash with stand-ins for the container runtimes on PATH."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import slurm_images
import slurm_labels
import slurm_options
import slurm_script
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_service import output
from inference_service.contracts import LaunchSpec, Mount
from inference_service.errors import BadInput, DecisionNeeded, Need

DECIDED = {"partition": "main", "account": "cluster-default"}
TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spec(**changes: object) -> LaunchSpec:
    base = LaunchSpec(
        job_id="5b3e0000-0000-4000-8000-000000000001",
        network_arch="cosmos-rl",
        platform="slurm",
        model_path="hf_model://org/model",
        image="nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl",
        command="umask 0 && true",
        env={"TAO_EXECUTION_BACKEND": "slurm"},
        secret_env=(),
        num_gpus=1,
        container_port=free_port(),
        platform_options=DECIDED,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def script_of(launch: LaunchSpec) -> str:
    labels = slurm_labels.labels_of(launch, "now", launch.stop_after())
    return slurm_script.build(launch, slurm_options.settings(launch, {}), labels)


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def run(script: str, folder: Path, secrets: str = "", pyxis: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm would, with runtimes that run the command right here and note what they were given."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    runtime = """#!/bin/bash
[ "$1" != --help ] || {{ echo {help}; exit; }}
printf '%s\\0' "$@" >{folder}/arguments; env -0 >{folder}/environment
while [ "$1" != bash ]; do shift; done
exec "$@"
"""
    quoted = shlex.quote(str(folder))
    for name, text in (("apptainer", ""), ("srun", "--container-image" if pyxis else "")):
        (programs / name).write_text(runtime.format(help=text, folder=quoted))
        (programs / name).chmod(0o755)
    if secrets:
        (folder / "env").write_text(secrets)
    environ = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "CUDA_VISIBLE_DEVICES": "0,1"}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=30)


def noted(folder: Path, name: str) -> list[str]:
    return (folder / name).read_bytes().decode().split("\0")[:-1]


def test_the_directives_say_all_that_was_asked_for() -> None:
    options = {
        "partition": "batch",
        "account": "team",
        "gres": "gpu:a100:2",
        "cpus": 8,
        "mem": "64G",
        "exclusive": True,
        "exclude": "n[3-4]",
    }
    found = directives(script_of(spec(num_gpus=2, max_hours=1.51, platform_options=options)))
    assert found["time"] == "91"
    assert (found["partition"], found["account"], found["gres"]) == ("batch", "team", "gpu:a100:2")
    assert (found["cpus-per-task"], found["mem"], found["exclude"]) == ("8", "64G", "n[3-4]")
    assert "exclusive" in found
    assert "no-requeue" in found


def test_what_is_left_to_the_cluster_is_not_asked_for() -> None:
    both = {"partition": "cluster-default", "account": "cluster-default"}
    found = directives(script_of(spec(num_gpus=0, platform_options=both)))
    assert not {"partition", "account", "time", "gres", "mem", "cpus-per-task", "exclusive"} & set(found)


def test_gpus_are_asked_for_as_gres() -> None:
    assert directives(script_of(spec(num_gpus=4)))["gres"] == "gpu:4"


def test_the_labels_are_in_the_comment_and_the_name() -> None:
    launch = spec(model_path="/data/a|b c,d=é", host_port=8081)
    found = directives(script_of(launch))
    labels = slurm_labels.parse(found["comment"])
    assert found["job-name"] == f"tao-{launch.job_id}"
    assert labels["tao-job-id"] == launch.job_id
    assert labels["tao-network-arch"] == "cosmos-rl"
    assert labels["tao-model-path"] == launch.model_path
    assert labels["tao-host-port"] == "8081"
    assert not set(found["comment"]) & set("| \t\n'\"")


@given(st.dictionaries(st.sampled_from(["tao-a", "tao-b", "tao-model-path"]), TEXT))
def test_labels_survive_the_comment_whatever_they_hold(labels: dict[str, str]) -> None:
    comment = slurm_labels.comment(labels)
    assert slurm_labels.parse(comment) == labels
    assert "|" not in comment
    assert len(comment.split()) <= 1


@pytest.mark.parametrize("pyxis", [False, True], ids=["apptainer", "pyxis"])
@settings(max_examples=12, deadline=None)
@given(argument=TEXT, plain=TEXT, secret=TEXT.filter(bool))
def test_command_and_variables_reach_the_container_unchanged(
    pyxis: bool, argument: str, plain: str, secret: str
) -> None:
    command = f"umask 0 && printf '%s' {shlex.quote(argument)}"
    launch = spec(command=command, env={"WANDB_PROJECT": plain}, secret_env=("HF_TOKEN",))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = run(script_of(launch), folder, slurm_script.env_file({"HF_TOKEN": secret}), pyxis)
        assert done.returncode == 0, done.stderr
        arguments, environment = noted(folder, "arguments"), noted(folder, "environment")
        assert arguments[-3:] == ["bash", "-c", command]
        assert done.stdout == argument.replace("\r\n", "\n").replace("\r", "\n")
        assert not (folder / "env").exists()
    prefix = "" if pyxis else "APPTAINERENV_"
    assert f"{prefix}WANDB_PROJECT={plain}" in environment
    assert f"{prefix}HF_TOKEN={secret}" in environment
    assert f"{prefix}CUDA_VISIBLE_DEVICES=0,1" in environment
    if pyxis:
        assert "--container-env=CUDA_VISIBLE_DEVICES,PYTHONNOUSERSITE,HF_TOKEN,WANDB_PROJECT" in arguments
        assert "--container-image=nvcr.io#nvidia/tao/tao-toolkit:7.0.1-cosmos-rl" in arguments
    else:
        assert arguments[:3] == ["exec", "--cleanenv", "--nv"]
        assert "docker://nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl" in arguments


def test_the_script_has_names_of_secrets_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_plantedSecretValue0123456789")
    script = script_of(spec(secret_env=("HF_TOKEN",)))
    assert "HF_TOKEN" in script
    assert "hf_planted" not in script


def test_without_its_secrets_the_service_does_not_start(tmp_path: Path) -> None:
    done = run(script_of(spec(secret_env=("HF_TOKEN",), command="touch started")), tmp_path)
    assert done.returncode == slurm_script.NO_SECRETS
    assert not (tmp_path / "started").exists()


def test_a_port_that_somebody_has_is_said_before_the_service_starts(tmp_path: Path) -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        launch = spec(container_port=other.getsockname()[1], command="touch started")
        done = run(script_of(launch), tmp_path, "x=1\n")
    assert done.returncode == slurm_script.PORT_TAKEN
    assert "--exclude" in done.stderr
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "env").exists()


def test_the_exit_status_is_the_services(tmp_path: Path) -> None:
    assert run(script_of(spec(command="exit 7")), tmp_path).returncode == 7


def test_a_node_without_a_runtime_is_said(tmp_path: Path) -> None:
    launch = spec(image="/images/x.sqsh")
    assert run(script_of(launch), tmp_path).returncode == slurm_script.NO_RUNTIME
    assert run(script_of(launch), tmp_path, pyxis=True).returncode == 0


def test_mounts_in_the_words_of_each_runtime(tmp_path: Path) -> None:
    launch = spec(mounts=(Mount("/lustre/a b", "/ckpt"), Mount("/scratch", "/out", read_only=False)))
    run(script_of(launch), tmp_path)
    arguments = noted(tmp_path, "arguments")
    assert arguments[arguments.index("--bind") + 1] == "/lustre/a b:/ckpt:ro"
    assert "/scratch:/out:rw" in arguments
    run(script_of(launch), tmp_path, pyxis=True)
    assert "--container-mounts=/lustre/a b:/ckpt:ro,/scratch:/out:rw" in noted(tmp_path, "arguments")


@pytest.mark.parametrize("path", ["/a:b", "/a,b", "/a\nb"])
def test_a_path_that_would_be_two_mounts_is_refused(path: str) -> None:
    with pytest.raises(BadInput, match="separates"):
        slurm_script.check_mounts([Mount("/data", path)])


@pytest.mark.parametrize(
    ("image", "pyxis", "apptainer"),
    [
        ("nvcr.io/nvidia/tao:7", "nvcr.io#nvidia/tao:7", "docker://nvcr.io/nvidia/tao:7"),
        ("docker://nvcr.io/nvidia/tao:7", "nvcr.io#nvidia/tao:7", "docker://nvcr.io/nvidia/tao:7"),
        ("localhost:5000/a:1", "localhost:5000#a:1", "docker://localhost:5000/a:1"),
        ("team/app:1", "team/app:1", "docker://team/app:1"),
        ("/images/a.sqsh", "/images/a.sqsh", None),
        ("/images/a.sif", None, "/images/a.sif"),
        ("/images/a.tar", None, "docker-archive:/images/a.tar"),
        ("docker-archive:/images/a.tar", None, "docker-archive:/images/a.tar"),
    ],
)
def test_an_image_is_named_as_each_runtime_takes_it(image: str, pyxis: str | None, apptainer: str | None) -> None:
    assert slurm_images.names(image) == slurm_images.ImageNames(pyxis, apptainer)


def test_an_image_of_the_other_runtime_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot run") as refused:
        slurm_images.check("/images/a.sif", "pyxis")
    assert "apptainer" in refused.value.fix


def test_an_image_that_only_this_machine_has_is_refused_with_the_way_to_bring_it() -> None:
    with pytest.raises(BadInput) as refused:
        slurm_images.check("tao-inference-service/smollm2:0.1.0", "auto")
    assert refused.value.type == "image_not_on_cluster"
    assert "export IMAGE_SMOLLM2=/home/USER/image.sif" in refused.value.fix


def test_partition_and_account_are_the_users_to_decide() -> None:
    with pytest.raises(DecisionNeeded) as asked:
        slurm_options.settings(spec(platform_options={}), {})
    assert [need.name for need in asked.value.needs] == ["partition", "account"]

    decided = slurm_options.settings(spec(platform_options={}), {"SLURM_PARTITION": "a", "SLURM_ACCOUNT": "b"})
    assert (decided.partition, decided.account) == ("a", "b")


def test_at_a_terminal_they_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[list[str]] = []

    def answer(needs: Sequence[Need]) -> dict[str, str]:
        rounds.append([need.name for need in needs])
        return {"partition": "batch", "account": "team"}

    monkeypatch.setattr(output, "decide", answer)
    for name in ("SLURM_PARTITION", "SLURM_ACCOUNT"):
        monkeypatch.setenv(name, "")
    for _ in range(2):
        decided = slurm_options.settings(spec(platform_options={}))
        assert (decided.partition, decided.account) == ("batch", "team")
    assert rounds == [["partition", "account"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "main\n#SBATCH --uid=root"),
        ("account", "a b"),
        ("mem", "lots"),
        ("exclude", "--help"),
        ("gres", "gpu:1;id"),
        ("cpus", 0),
        ("gres", "gpu:2"),
    ],
)
def test_an_option_that_means_nothing_is_refused(name: str, value: object) -> None:
    with pytest.raises(BadInput) as refused:
        slurm_options.settings(spec(platform_options={**DECIDED, name: value}), {})
    assert refused.value.fix


def test_json_of_the_spec_keeps_the_options() -> None:
    launch = spec(max_hours=2.0, platform_options={**DECIDED, "cpus": 2})
    assert LaunchSpec.from_json(json.loads(json.dumps(launch.to_json()))) == launch

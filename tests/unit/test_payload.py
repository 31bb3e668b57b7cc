"""A launch spec and the rules it keeps, whether it was built here or comes back from a file."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_service import payload, references
from inference_service.contracts import LaunchSpec, Mount
from inference_service.errors import BadInput, DecisionNeeded

REFS = references.load()
HF = "hf_model://nvidia/model"


def build(
    arch: str = "cosmos-rl",
    model_path: str = HF,
    platform: str = "local-docker",
    environ: Mapping[str, str] | None = None,
    **more: Any,
) -> LaunchSpec:
    return payload.build(payload.Wanted(arch, model_path, platform, **more), REFS, environ or {})


def refusal(*arguments: Any, **more: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        build(*arguments, **more)
    return caught.value


def test_each_launch_has_a_job_id_of_its_own_in_job_environment_and_spec() -> None:
    first, second = build(), build()
    assert uuid.UUID(first.job_id).version == 4
    assert first.job_id != second.job_id
    assert first.env["TAO_API_JOB_ID"] == first.job_id
    assert first.command.count(first.job_id) == 2


def test_the_environment_says_backend_job_and_that_there_are_no_callbacks() -> None:
    spec = build(platform="kubernetes", env=["WANDB_PROJECT=p"])
    assert spec.env == {
        "TAO_EXECUTION_BACKEND": "local-k8s",
        "TAO_API_JOB_ID": spec.job_id,
        "CLOUD_BASED": "False",
        "WANDB_PROJECT": "p",
    }
    assert "WANDB_PROJECT" not in spec.command


def test_the_archs_secret_is_named_when_it_is_set_and_those_asked_for_always() -> None:
    assert build().secret_env == ()
    assert build(environ={"HF_TOKEN": "hf_1234567"}).secret_env == ("HF_TOKEN",)
    assert build(environ={"HF_TOKEN": "hf_1234567"}, env=["HF_TOKEN", "WANDB_API_KEY"]).secret_env == (
        "HF_TOKEN",
        "WANDB_API_KEY",
    )
    assert build("claude", "claude://claude-haiku-4-5").secret_env == (
        "ANTHROPIC_API_KEY",
        "TAO_GATEWAY_CALLER_KEY",
    )


@pytest.mark.parametrize(
    ("arch", "given", "num_gpus"), [("cosmos-rl", None, 1), ("cosmos-rl", 4, 4), ("smollm2", None, 0)]
)
def test_the_number_of_gpus_defaults_to_the_archs(arch: str, given: int | None, num_gpus: int) -> None:
    assert build(arch, num_gpus=given).num_gpus == num_gpus


@pytest.mark.parametrize(("arch", "num_gpus"), [("cosmos-rl", 0), ("cosmos-rl", -1), ("smollm2", -1)])
def test_fewer_gpus_than_the_arch_needs_are_refused(arch: str, num_gpus: int) -> None:
    assert "needs at least" in refusal(arch, num_gpus=num_gpus).message


def test_a_registered_key_is_asked_for_and_never_derived() -> None:
    with pytest.raises(DecisionNeeded) as caught:
        build("cosmos-predict2.5")
    (need,) = caught.value.needs
    assert (need.name, need.answer_with, need.required) == ("model", "--spec model=KEY", True)
    for example in ("base-2b", "base-14b", "auto-multiview"):
        assert example in need.question
    assert "--model base-2b " in build("cosmos-predict2.5", specs=["model=base-2b"]).command


def test_a_registered_key_with_a_local_checkpoint_is_refused() -> None:
    assert "leave --spec model out" in refusal("cosmos-predict2.5", "/m/x.pt", specs=["model=base-2b"]).fix


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_host_port_is_a_port(port: int) -> None:
    assert refusal(host_port=port).type == "bad_host_port"


def test_an_unknown_platform_lists_those_there_are() -> None:
    assert "local-docker" in refusal(platform="docker").fix


@pytest.mark.parametrize("arch", ["cosmos-rl", "cosmos-predict2.5"])
def test_a_folder_where_the_arch_takes_a_file_is_refused_and_the_reverse(arch: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_text("weights")
    takes_folder = REFS.arch(arch).model_path_is_folder
    right, wrong = (tmp_path, file) if takes_folder else (file, tmp_path)
    assert build(arch, str(right)).mounts == (Mount(str(right), str(right), read_only=True),)
    assert refusal(arch, str(wrong)).type == "wrong_model_path_kind"
    assert refusal(arch, "/in", mounts=[f"{wrong}:/in"]).type == "wrong_model_path_kind"


def test_a_path_that_is_only_in_the_image_is_taken_as_it_is() -> None:
    spec = build(model_path="/opt/nothing-here-6d1f")
    assert spec.mounts == ()
    assert payload.model_is_in_the_image_alone(spec, REFS, {})


def test_a_path_that_a_mount_should_show_but_does_not_is_refused(tmp_path: Path) -> None:
    assert refusal(model_path="/in/x", mounts=[f"{tmp_path}:/in"]).type == "model_missing"


def test_without_a_container_a_missing_path_is_refused_and_nothing_is_mounted(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    assert refusal("smollm2", str(model), "local-process").type == "model_missing"
    model.write_text("x")
    assert build("smollm2", str(model), "local-process").mounts == ()


def test_a_docker_engine_on_another_machine_sees_none_of_this_ones_paths(tmp_path: Path) -> None:
    there = {"DOCKER_HOST": "ssh://gpu-box"}
    assert build(model_path=str(tmp_path), environ=there).mounts == ()
    assert build(model_path="/in", mounts=["/only/there:/in"], environ=there).mounts == (Mount("/only/there", "/in"),)
    assert build(model_path=str(tmp_path), environ={"DOCKER_HOST": "unix:///run/docker.sock"}).mounts != ()


@pytest.mark.parametrize(
    "wanted",
    [
        {"env": ["WANDB_PROJECT=planted-7f3a9c"]},
        {"model_path": "/models/planted-7f3a9c"},
        {"arch": "tao-dataservices", "specs": ["torch_dtype=planted-7f3a9c"]},
        {"platform_options": {"network": "planted-7f3a9c"}},
    ],
)
def test_a_secrets_value_anywhere_in_the_spec_is_refused_by_name(wanted: dict[str, Any]) -> None:
    error = refusal(environ={"WANDB_API_KEY": "planted-7f3a9c"}, **wanted)
    assert "WANDB_API_KEY" in error.message
    assert "planted" not in str(error.document())


def test_a_spec_survives_its_json() -> None:
    spec = build("tao-dataservices", specs=["trust_remote_code=true"], host_port=9000, mounts=["/tmp:/in"])
    assert LaunchSpec.from_json(spec.to_json()) == spec
    payload.check(spec, REFS, {})


@pytest.mark.parametrize(
    ("change", "type_"),
    [
        ({"job_id": "mine"}, "bad_job_id"),
        ({"job_id": str(uuid.uuid4())}, "env_set_by_us"),
        ({"network_arch": "smollm2"}, "command_changed"),
        ({"network_arch": "nothing"}, "unknown_network_arch"),
        ({"platform": "nothing"}, "unknown_platform"),
        ({"platform": "slurm"}, "env_set_by_us"),
        ({"model_path": "s3://a/b"}, "refused_model_path"),
        ({"model_path": "hf_model://other/model"}, "command_changed"),
        ({"command": "umask 0 && rm -rf /"}, "command_changed"),
        ({"image": "--privileged"}, "bad_image"),
        ({"num_gpus": 0}, "bad_num_gpus"),
        ({"container_port": 22}, "bad_container_port"),
        ({"secret_env": ("NGC_KEY",)}, "unknown_secret"),
        ({"secret_env": ("ANTHROPIC_API_KEY",)}, "secret_for_other_arch"),
        ({"specs": {"torch_dtype": "auto"}}, "unknown_spec"),
        ({"mounts": (Mount("/nothing-6d1f", "/x"),)}, "mount_source_missing"),
    ],
)
def test_a_spec_that_was_changed_is_refused(change: dict[str, Any], type_: str) -> None:
    with pytest.raises(BadInput) as caught:
        payload.check(replace(build(), **change), REFS, {})
    assert caught.value.type == type_


@pytest.mark.parametrize(
    ("name", "type_"),
    [("HF_TOKEN", "secret_not_passed"), ("TAO_ADMIN_KEY", "forbidden_env"), ("LD_PRELOAD", "unknown_env")],
)
def test_a_spec_with_an_environment_name_that_may_not_be_passed_is_refused(name: str, type_: str) -> None:
    spec = build()
    with pytest.raises(BadInput) as caught:
        payload.check(replace(spec, env={**spec.env, name: "x"}), REFS, {})
    assert caught.value.type == type_


def test_a_spec_without_the_secret_that_its_arch_needs_is_refused() -> None:
    with pytest.raises(BadInput, match="ANTHROPIC_API_KEY"):
        payload.check(replace(build("claude", "claude://claude-haiku-4-5"), secret_env=()), REFS, {})


def test_a_path_too_long_to_exist_is_one_that_does_not() -> None:
    assert build(model_path="/" + "x" * 5000).mounts == ()
    assert refusal("smollm2", "/" + "x" * 5000, "local-process").type == "model_missing"

"""What the driver of Brev says and refuses before anybody is asked, and how it reads what it is told."""

from __future__ import annotations

import io
import json
import shlex
import uuid
from collections.abc import Mapping
from typing import Any

import brev_container
import brev_instances
import brev_options
import pytest
from docker_engine import launch_spec
from hypothesis import given
from hypothesis import strategies as st

from inference_service import docker_container, platforms
from inference_service.contracts import LaunchSpec, Mount, ServiceEntry
from inference_service.errors import BadInput


def brev_spec(**changes: Any) -> LaunchSpec:
    return launch_spec(**{"platform": "brev", "host_port": 8083, **changes})


def dry_run(**changes: Any) -> Mapping[str, Any]:
    return platforms.load("brev").dry_run(brev_spec(**changes))


def settings(**given_options: Any) -> brev_options.Settings:
    return brev_options.settings(brev_spec(platform_options=given_options))


def test_a_dry_run_shows_every_command_with_secrets_as_names_and_needs_no_brev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    document = dry_run(
        secret_env=("HF_TOKEN",), num_gpus=2, mounts=(Mount("/data", "/d"),),
        platform_options={"create-instance": "yes", "gpu-name": "L40S", "cloud-cred-id": "c",
                          "workspace-group-id": "w"},
    )  # fmt: skip
    assert "hf_planted_secret" not in json.dumps(document)
    assert shlex.split(document["create"])[2:] == [
        document["instance"], "--gpu-name", "L40S", "--cloud-cred-id", "c", "--workspace-group-id", "w", "--detached"
    ]  # fmt: skip
    run = document["on_the_instance"][-1]
    assert "--gpus 2" in run and "type=bind,source=/data,target=/d,readonly" in run
    assert "--env-file /dev/stdin" in run and "--publish 0.0.0.0:8083:8080" in run
    assert document["secret_env"] == ["HF_TOKEN"]


def test_the_network_of_this_machines_docker_means_nothing_on_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_NETWORK", "theirs")
    assert settings().docker.network == "tao_default"


@pytest.mark.parametrize(("reach", "address"), [("auto", "0.0.0.0"), ("direct", "0.0.0.0"), ("tunnel", "127.0.0.1")])
def test_a_service_behind_a_tunnel_is_open_on_its_instance_alone(reach: str, address: str) -> None:
    assert settings(reach=reach).docker.bind_address == address


def test_nothing_is_created_or_started_unless_it_was_said() -> None:
    assert (settings().create, settings().start_stopped) == (None, None)
    assert settings(**{"create-instance": "no"}).create is False
    assert settings(instance="new").create is True and settings(instance="new").instance is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"instance": "mine", "create-instance": "yes"}, "instance_and_create"),
        ({"instance": "--help"}, "bad_instance"),
        ({"instance": "a b"}, "bad_instance"),
        ({"gpu-name": "--force"}, "bad_platform_option"),
        ({"instance-timeout": 0.0}, "bad_timeout"),
        ({"shm-size": "much"}, "bad_shm_size"),
        ({"gpu-ids": "0,1"}, "gpu_count_mismatch"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anybody_is_asked(options: dict[str, Any], error: str) -> None:
    with pytest.raises(BadInput) as refused:
        platforms.load("brev").check(brev_spec(platform_options=options))
    assert refused.value.type == error


@given(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])))
def test_a_secret_passes_the_env_file_unchanged(value: str) -> None:
    name, _, read = brev_container.env_file({"HF_TOKEN": value}).decode().removesuffix("\n").partition("=")
    assert (name, read) == ("HF_TOKEN", value)
    assert len(list(io.BytesIO(brev_container.env_file({"HF_TOKEN": value})))) == 1


def test_a_secret_with_a_line_end_is_refused_by_its_name() -> None:
    with pytest.raises(BadInput) as refused:
        brev_container.env_file({"HF_TOKEN": "hf_planted\nEVIL=1"})
    assert "HF_TOKEN" in refused.value.message and "planted" not in refused.value.message


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_the_inner_command_passes_both_shells_unchanged(command: str) -> None:
    spec = brev_spec(command=command, secret_env=("HF_TOKEN",))
    script = brev_container.run_script(docker_container.plan(spec, settings().docker, tegra=False, owner="me"))
    words = shlex.split(script)
    assert words[:2] == ["cat", "|"] and words[-1] == command
    assert "HF_TOKEN" not in words


def test_the_instance_of_a_service_is_its_own_where_none_was_named() -> None:
    job_id = str(uuid.uuid4())
    for extras, name in (
        ({}, f"tao-inf-{job_id[:8]}"),
        ({"platform_options": {"instance": "mine"}}, "mine"),
        ({"platform_options": {"instance": "new"}}, f"tao-inf-{job_id[:8]}"),
        ({"instance": "other", "platform_options": {"instance": "ws-id"}}, "other"),
    ):
        entry = ServiceEntry(job_id, "smollm2", "brev", "", extras=extras)
        assert brev_instances.of_entry(entry) == name
    assert brev_instances.created_by_us(brev_instances.name_for(job_id))
    assert not brev_instances.created_by_us("tao-inf-mine")


def test_a_pull_goes_from_0_to_1_and_never_back() -> None:
    lines = brev_container.PullLines()
    assert lines.fraction is None
    seen: list[float | None] = []
    for line in ("1: Pulling from org/image", "a: Pulling fs layer", "b: Already exists", "a: Downloading",
                 "a: Download complete", "a: Pull complete", "Digest: sha256:0", "Status: Downloaded"):  # fmt: skip
        lines.take(line)
        seen.append(lines.fraction)
    known = [fraction for fraction in seen[2:] if fraction is not None]
    assert known == sorted(known) and known[-1] == 1.0

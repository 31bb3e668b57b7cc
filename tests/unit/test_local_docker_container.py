"""The container that a launch spec becomes, and the dry run that shows it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import local_docker_container as container
import local_docker_options as options
import pytest
from docker_engine import launch_spec

from inference_service import docker_container, paths, platforms
from inference_service.contracts import LaunchSpec, Mount


def plan_of(spec: LaunchSpec, tegra: bool = False) -> docker_container.Plan:
    return docker_container.plan(spec, options.settings(spec, environ={}), tegra, paths.registry_owner())


def dry_run(spec: LaunchSpec) -> Mapping[str, Any]:
    return platforms.load("local-docker").dry_run(spec)


def test_a_dry_run_shows_the_container_and_secrets_as_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    spec = launch_spec(secret_env=("HF_TOKEN",), num_gpus=2, mounts=(Mount("/data", "/d"),), host_port=8083)
    document = dry_run(spec)
    assert "hf_planted_secret" not in json.dumps(document)
    assert document["secret_env"] == ["HF_TOKEN"]
    assert document["name"] == spec.job_id
    assert document["labels"] == {
        "tao-job-id": spec.job_id,
        "tao-network-arch": "smollm2",
        "tao-model-path": spec.model_path,
        "tao-registry": paths.registry_owner(),
    }
    assert document["ports"] == {"8080/tcp": {"bind_address": "127.0.0.1", "host_port": 8083}}
    assert document["mounts"] == [{"source": "/data", "target": "/d", "read_only": True}]
    assert document["device_requests"][0]["Count"] == 2


def test_a_deadline_is_a_label_of_the_container() -> None:
    document = dry_run(launch_spec(max_hours=2.0))
    left = datetime.fromisoformat(document["labels"]["tao-stop-after"]) - datetime.now(timezone.utc)
    assert timedelta(hours=1.9) < left <= timedelta(hours=2)
    assert f"tao-stop-after={document['labels']['tao-stop-after']}" in shlex.split(document["docker_run"])


def test_a_dry_run_needs_no_docker_package_and_no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "docker" or name.startswith("docker.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    platforms.load("local-docker").check(launch_spec())
    assert dry_run(launch_spec())["image"]


def test_the_dry_runs_docker_command_carries_every_word_through_the_shell() -> None:
    command = """umask 0 && echo 'it'"'"'s "$HOME" `x` \n ü'"""
    spec = launch_spec(command=command, env={"A": "b 'c' $D"}, secret_env=("HF_TOKEN",), host_port=8081)
    words = shlex.split(dry_run(spec)["docker_run"])
    assert words[-4:] == ["bash", spec.image, "-c", command]
    assert words[words.index("--publish") + 1] == "127.0.0.1:8081:8080"
    assert "A=b 'c' $D" in words
    assert words[words.index("HF_TOKEN") - 1] == "--env"
    assert "--ipc" not in words
    assert "--rm" not in words


def test_a_comma_in_a_mounts_path_is_quoted_for_docker_run() -> None:
    spec = launch_spec(mounts=(Mount("/a,b", "/m", read_only=False),))
    words = shlex.split(dry_run(spec)["docker_run"])
    assert words[words.index("--mount") + 1] == 'type=bind,"source=/a,b",target=/m'


def test_gpus_by_ids_are_asked_for_by_ids_and_not_by_count() -> None:
    requests = container.device_requests(
        plan_of(launch_spec(num_gpus=2, platform_options={"gpu-ids": "1,3"})).gpus,
    )
    assert requests == [
        {"Driver": "", "Count": 0, "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]], "Options": {}},
    ]


def test_no_gpus_means_no_request_and_no_runtime_even_on_a_tegra() -> None:
    plan = plan_of(launch_spec(num_gpus=0), tegra=True)
    assert container.device_requests(plan.gpus) == []
    assert plan.gpus.runtime is None


@pytest.mark.parametrize(
    ("platform_options", "tegra", "runtime", "visible"),
    [
        ({}, True, "nvidia", "all"),
        ({"gpu-ids": "0,1"}, True, "nvidia", "0,1"),
        ({"gpu-mode": "nvidia-runtime"}, False, "nvidia", "0,1"),
        ({"gpu-mode": "device-requests"}, True, None, None),
        ({}, False, None, None),
    ],
)
def test_a_tegra_gets_its_gpu_through_the_runtime(
    platform_options: dict[str, str], tegra: bool, runtime: str | None, visible: str | None
) -> None:
    plan = plan_of(launch_spec(num_gpus=2, platform_options=platform_options), tegra)
    assert plan.gpus.runtime == runtime
    assert bool(container.device_requests(plan.gpus)) is (runtime is None)
    assert plan.env.get("NVIDIA_VISIBLE_DEVICES") == visible
    assert plan.env.get("NVIDIA_DRIVER_CAPABILITIES") == ("all" if runtime else None)


def test_a_jetson_is_recognized_by_its_kernel() -> None:
    assert docker_container.is_tegra("5.15.148-tegra")
    assert not docker_container.is_tegra("6.8.0-45-generic")


def test_the_engine_is_given_a_read_only_mount_a_log_limit_and_no_ipc_of_the_host() -> None:
    arguments = container.host_config_arguments(plan_of(launch_spec(mounts=(Mount("/data", "/d"),), host_port=8081)))
    assert arguments["mounts"][0]["ReadOnly"] is True
    assert arguments["log_config"].config == {"max-size": "50m", "max-file": "3"}
    assert not {"ipc_mode", "auto_remove", "privileged"} & set(arguments)

"""What lepton would create: names that Lepton takes, options, mounts, secrets as names; without client or network."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import lepton_names as names
import lepton_options as options
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton_shapes import Shape, choose
from lepton_support import driver, spec

from inference_service import paths
from inference_service.contracts import Mount
from inference_service.errors import BadInput, DecisionNeeded

# leptonai 0.47.1, api/v2/job_validation.py
LEPTON_NAME = re.compile(r"[a-z][a-z0-9-]{0,35}")


@given(st.uuids(), st.sampled_from(["HF_TOKEN", "CLEARML_API_SECRET_KEY"]))
def test_every_job_id_has_names_that_lepton_takes_and_that_lead_back_to_it(job_id: uuid.UUID, variable: str) -> None:
    name = names.endpoint_name(str(job_id))
    assert LEPTON_NAME.fullmatch(name)
    assert not name.endswith(("-", "by-lepton"))
    assert names.job_id_of_endpoint(name) == str(job_id)
    secret = names.secret_name(str(job_id), variable)
    assert len(secret) <= 63
    assert secret.startswith(names.secret_prefix(str(job_id)))
    assert names.job_id_of_secret(secret) == str(job_id)


@given(st.text())
def test_names_of_others_are_not_taken_for_ours(text: str) -> None:
    for found in (names.job_id_of_endpoint(text), names.job_id_of_secret(text)):
        assert found is None or found.replace("-", "") in text.lower()


def endpoint_of(**changes: Any) -> dict[str, Any]:
    document = driver().dry_run(spec(**changes))
    json.dumps(document)
    found: dict[str, Any] = document["endpoint"]
    return found


def test_the_endpoint_runs_the_inner_command_as_it_is_on_one_replica() -> None:
    found = endpoint_of()["spec"]
    assert found["container"] == {
        "image": "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl",
        "command": ["bash", "-c", "umask 0 && serve --job '{}'"],
        "ports": [{"container_port": 8080}],
    }
    assert found["resource_requirement"] == {"min_replicas": 1, "max_replicas": 1, "shared_memory_size": 8192}
    assert "auto_scaler" not in found


def test_the_endpoint_carries_our_marks_where_both_generations_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = spec()
    document: Any = driver().dry_run(wanted)
    envs = {env["name"]: env.get("value") for env in document["endpoint"]["spec"]["envs"]}
    assert envs["TAO_JOB_ID"] == wanted.job_id
    assert envs["TAO_NETWORK_ARCH"] == "cosmos-rl"
    assert envs["TAO_REGISTRY"] == paths.shared_registry_owner()
    assert "labels" not in document["endpoint"]["metadata"]


def test_a_secret_is_a_reference_and_its_value_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_value_1234")
    wanted = spec(secret_env=("HF_TOKEN",))
    document: Any = driver().dry_run(wanted)
    (env,) = [env for env in document["endpoint"]["spec"]["envs"] if env["name"] == "HF_TOKEN"]
    assert env == {"name": "HF_TOKEN", "value_from": {"secret_name_ref": names.secret_name(wanted.job_id, "HF_TOKEN")}}
    assert "planted" not in json.dumps(document)


def test_options_reach_the_endpoint() -> None:
    given_options = {
        "resource-shape": "GPU.1xH100-SXM",
        "image-pull-secret": "ngc",
        "shm-mib": 512,
        "volume": "node-nfs:data",
    }
    found = endpoint_of(platform_options=given_options, mounts=(Mount("/data/ckpt", "/ckpt"),))["spec"]
    assert found["resource_requirement"]["resource_shape"] == "gpu.1xh100-sxm"
    assert found["resource_requirement"]["shared_memory_size"] == 512
    assert found["image_pull_secrets"] == ["ngc"]
    (mount,) = found["mounts"]
    assert (mount["path"], mount["from"], mount["mount_path"]) == ("/data/ckpt", "node-nfs:data", "/ckpt")
    assert mount["mount_options"] == {"read_only": True}


def test_max_hours_is_a_time_that_is_kept_with_the_service() -> None:
    found = endpoint_of(max_hours=2.0)["spec"]
    (stop_after,) = [env["value"] for env in found["envs"] if env["name"] == "TAO_STOP_AFTER"]
    left = datetime.fromisoformat(stop_after) - datetime.now(timezone.utc)
    assert timedelta(hours=1.99) < left <= timedelta(hours=2)


@pytest.mark.parametrize(
    ("given_options", "error"),
    [
        ({"resource-shape": "a b"}, "bad_resource_shape"),
        ({"dedicated-node-group": "../x"}, "bad_dedicated_node_group"),
        ({"image-pull-secret": "$(id)"}, "bad_image_pull_secret"),
        ({"volume": "local"}, "bad_volume"),
        ({"volume": "node-nfs:"}, "bad_volume"),
        ({"shm-mib": 0}, "bad_shm_mib"),
        ({"gpu-ids": "0"}, "unknown_platform_option"),
    ],
)
def test_an_option_without_a_meaning_is_refused(given_options: dict[str, Any], error: str) -> None:
    with pytest.raises(BadInput) as refused:
        driver().check(spec(platform_options=given_options))
    assert refused.value.type == error
    assert refused.value.fix


def test_a_mount_needs_a_volume_and_a_place_that_lepton_allows() -> None:
    with pytest.raises(BadInput, match="no files of this machine"):
        driver().check(spec(mounts=(Mount("/data", "/ckpt"),)))
    for target in ("/etc", "/usr/lib/", "//proc", "/opt/../var"):
        with pytest.raises(BadInput, match="mount over"):
            driver().check(spec(mounts=(Mount("/data", target),), platform_options={"volume": "node-local"}))
    driver().check(spec(mounts=(Mount("/data", "/opt/ckpt"),), platform_options={"volume": "node-local"}))


SHAPES = [
    Shape("cpu.medium", 0, "", 16384),
    Shape("gpu.1xh100", 1, "H100", 131072),
    Shape("gpu.0.5xh100", 0.5, "H100", 65536),
    Shape("gpu.4xh100", 4, "H100", 524288),
    Shape("gpu.4xa100", 4, "A100", 524288),
]


def chosen(num_gpus: int, **given_options: Any) -> str:
    settings = options.settings(spec(num_gpus=num_gpus, platform_options=given_options))
    return choose(SHAPES, num_gpus, settings)


def test_the_only_shape_with_that_many_whole_gpus_is_taken() -> None:
    assert chosen(1) == "gpu.1xh100"
    assert chosen(0) == "cpu.medium"


def test_which_of_several_shapes_is_for_the_user_to_say() -> None:
    with pytest.raises(DecisionNeeded) as asked:
        chosen(4)
    (need,) = asked.value.needs
    assert need.answer_with == "--resource-shape ID"
    assert [option["resource_shape"] for option in need.options or ()] == ["gpu.4xh100", "gpu.4xa100"]
    assert chosen(4, **{"resource-shape": "gpu.4xa100"}) == "gpu.4xa100"


def test_a_shape_that_is_not_there_or_has_other_gpus_is_refused_with_what_there_is() -> None:
    with pytest.raises(BadInput, match="no shape with 2") as refused:
        chosen(2)
    assert refused.value.fix == "--num-gpus, one of: 0, 1, 4"
    with pytest.raises(BadInput) as refused:
        chosen(1, **{"resource-shape": "gpu.1xb200"})
    assert "gpu.1xh100" in refused.value.fix
    with pytest.raises(BadInput) as refused:
        chosen(1, **{"resource-shape": "gpu.4xh100"})
    assert "--num-gpus 4" in refused.value.fix

"""The manifests: valid for three Kubernetes versions, no privilege, no secret, everything owned by the Job."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import kubernetes_objects as objects
import kubernetes_options as options
import kubernetes_preflight
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_engine import launch_spec
from support import SKILL

from inference_service import platforms
from inference_service.contracts import LaunchSpec, Mount

VERSIONS = ("1.32", "1.33", "1.34")
NGC_IMAGE = "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl"

PLAIN = launch_spec(image="example.com/i:1")
EVERYTHING = launch_spec(
    image=NGC_IMAGE,
    secret_env=("HF_TOKEN", "WANDB_API_KEY"),
    num_gpus=2,
    max_hours=2.0,
    mounts=(Mount("/data/ckpt", "/ckpt"), Mount("/scratch", "/scratch", read_only=False)),
    platform_options={
        "namespace": "team",
        "create-image-pull-secret": True,
        "node-selector": "gpu=a100",
        "tolerations": "spot:NoExecute",
        "pvc": "models/a:/m,models/b:/n:rw",
        "cpu": "4:8",
        "memory": "32Gi:64Gi",
        "labels": "team=vision",
        "annotations": "owner=a b",
    },
)


def dry_run(spec: LaunchSpec) -> Mapping[str, Any]:
    return platforms.load("kubernetes").dry_run(spec)


def by_kind(spec: LaunchSpec) -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in dry_run(spec)["items"]}


def pod_of(spec: LaunchSpec) -> dict[str, Any]:
    pod: dict[str, Any] = by_kind(spec)["Job"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("spec", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_every_manifest_is_valid(spec: LaunchSpec, version: str) -> None:
    for item in dry_run(spec)["items"]:
        kubernetes_validate.validate(json.loads(json.dumps(item)), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_role_that_the_skill_asks_for_is_valid(version: str) -> None:
    kubernetes_validate.validate(yaml.safe_load(kubernetes_preflight.ROLE_FILE.read_text()), version, strict=True)


def test_the_skill_lists_the_rights_of_the_role() -> None:
    text = (SKILL / "platform" / "kubernetes" / "SKILL.md").read_text()
    listed = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert listed == yaml.safe_load(kubernetes_preflight.ROLE_FILE.read_text())["rules"]


def test_a_dry_run_shows_secrets_as_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "NGC_KEY"):
        monkeypatch.setenv(name, f"planted-{name.lower()}")
    text = json.dumps(dry_run(EVERYTHING))
    assert "planted-" not in text
    assert "${HF_TOKEN}" in text
    assert "${NGC_KEY}" in text


def test_a_dry_run_needs_no_cluster_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert dry_run(PLAIN)["kind"] == "List"


def test_a_pod_has_no_privilege() -> None:
    pod = pod_of(EVERYTHING)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = pod["containers"][0]["securityContext"]
    assert security == {"privileged": False, "allowPrivilegeEscalation": False}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_a_job_runs_its_pod_once_and_only_after_everything_else_is_there() -> None:
    job = by_kind(EVERYTHING)["Job"]["spec"]
    assert job["suspend"] is True
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["activeDeadlineSeconds"] == 7200
    assert "tao-stop-after" in by_kind(EVERYTHING)["Job"]["metadata"]["annotations"]
    assert "activeDeadlineSeconds" not in by_kind(PLAIN)["Job"]["spec"]


def test_gpus_are_a_limit_and_bring_the_toleration_of_gpu_nodes() -> None:
    pod = pod_of(EVERYTHING)
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "memory": "32Gi"},
        "limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"},
    }
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu", "spot"]
    assert "tolerations" not in pod_of(PLAIN)
    assert pod_of(PLAIN)["containers"][0]["resources"] == {}


def test_shared_memory_is_in_memory_and_claims_are_mounted_where_they_are_wanted() -> None:
    pod = pod_of(EVERYTHING)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    mounted = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes[mounted["/ckpt"]["name"]]["hostPath"] == {"path": "/data/ckpt"}
    assert (mounted["/ckpt"]["readOnly"], mounted["/scratch"]["readOnly"]) == (True, False)
    assert volumes[mounted["/m"]["name"]]["persistentVolumeClaim"] == {"claimName": "models"}
    assert mounted["/m"]["name"] == mounted["/n"]["name"]
    assert (mounted["/m"]["subPath"], mounted["/n"]["readOnly"]) == ("a", False)


def test_the_poller_sees_the_model_load_through_the_service() -> None:
    service = by_kind(PLAIN)["Service"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"tao-job-id": PLAIN.job_id}
    assert service["metadata"]["name"] == by_kind(PLAIN)["Job"]["metadata"]["name"] == f"tao-{PLAIN.job_id}"


def test_everything_is_marked_and_the_job_says_which_secrets_go_with_it() -> None:
    for item in dry_run(EVERYTHING)["items"]:
        labels, annotations = item["metadata"]["labels"], item["metadata"]["annotations"]
        assert labels == {"team": "vision", "tao-job-id": EVERYTHING.job_id, "tao-network-arch": "smollm2"}
        assert annotations["owner"] == "a b"
        assert objects.is_ours(item)
    name = objects.name_of(EVERYTHING.job_id)
    assert by_kind(EVERYTHING)["Job"]["metadata"]["annotations"]["tao-secrets"] == f"{name},{name}-pull"


def test_another_machines_services_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    item = by_kind(PLAIN)["Job"]
    monkeypatch.setattr("socket.gethostname", lambda: "another-machine")
    assert not objects.is_ours(item)


def test_values_go_into_secrets_alone() -> None:
    values = {"HF_TOKEN": "hf_1", "WANDB_API_KEY": "wb_2", "NGC_KEY": "ngc_3"}
    made = objects.build(EVERYTHING, options.settings(EVERYTHING), "team", values)
    assert made.secret is not None and made.image_pull_secret is not None
    assert made.secret["stringData"] == {"HF_TOKEN": "hf_1", "WANDB_API_KEY": "wb_2"}
    config = json.loads(made.image_pull_secret["stringData"][".dockerconfigjson"])
    assert base64.b64decode(config["auths"]["nvcr.io"]["auth"]) == b"$oauthtoken:ngc_3"
    for value in values.values():
        assert value not in json.dumps([made.job, made.service])


def test_owned_objects_name_the_job() -> None:
    made = objects.build(PLAIN, options.settings(PLAIN), "team")
    job = {"metadata": {"name": "tao-x", "uid": "u-1"}}
    (reference,) = objects.owned_by(made.service, job)["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["name"], reference["uid"]) == ("Job", "tao-x", "u-1")
    assert "ownerReferences" not in made.service["metadata"]


def test_an_image_that_no_registry_serves_is_never_looked_for_on_one() -> None:
    spec = launch_spec(image="tao-inference-service/smollm2:0.1.0")
    assert pod_of(spec)["containers"][0]["imagePullPolicy"] == "Never"
    assert pod_of(PLAIN)["containers"][0]["imagePullPolicy"] == "IfNotPresent"


def expanded(text: str) -> str:
    """What Kubernetes makes of a value or an argument (its package expansion), no variable being defined."""
    result, position = "", 0
    while position < len(text):
        if text[position] == "$" and position + 1 < len(text):
            following = text[position + 1]
            if following == "$":
                result, position = result + "$", position + 2
                continue
            if following == "(" and ")" in text[position:]:
                raise AssertionError(f"{text} refers to a variable")
        result, position = result + text[position], position + 1
    return result


@given(st.text(alphabet="$()AB 'x", max_size=20))
def test_no_value_and_no_command_is_expanded_by_kubernetes(text: str) -> None:
    spec = launch_spec(image="example.com/i:1", command=text, env={"NAME": text})
    container = pod_of(spec)["containers"][0]
    assert expanded(container["env"][0]["value"]) == text
    assert expanded(container["command"][2]) == text

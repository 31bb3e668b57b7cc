"""What may be chosen about a service on a cluster, and what is refused before the cluster is asked."""

from __future__ import annotations

from typing import Any

import kubernetes_options as options
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_engine import launch_spec

from inference_service import platforms
from inference_service.contracts import Mount
from inference_service.errors import BadInput

NGC_IMAGE = "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl"


def settings(image: str = "example.com/i:1", **given: Any) -> options.Settings:
    dashed = {name.replace("_", "-"): value for name, value in given.items()}
    return options.settings(launch_spec(image=image, platform_options=dashed))


def test_without_options_a_load_balancer_is_asked_for_and_the_kubeconfig_decides_where() -> None:
    chosen = settings()
    assert chosen.service_type == "LoadBalancer"
    assert (chosen.context, chosen.namespace, chosen.deadline_seconds) == (None, None, None)
    assert chosen.shm_size == "8Gi"


def test_lists_are_read() -> None:
    chosen = settings(
        node_selector="gpu=a100, example.com/zone=b",
        tolerations="dedicated=ml:NoSchedule,spot",
        pvc="ckpt/run7:/models,cache:/cache:rw",
        labels="team=vision",
        annotations="note=a b:c",
        cpu="4:8",
        memory="32Gi",
    )
    assert chosen.node_selector == {"gpu": "a100", "example.com/zone": "b"}
    assert chosen.tolerations == (
        {"key": "dedicated", "operator": "Equal", "value": "ml", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
    )
    assert chosen.claims == (
        options.Claim("ckpt", "run7", "/models", read_only=True),
        options.Claim("cache", "", "/cache", read_only=False),
    )
    assert chosen.labels == {"team": "vision"}
    assert chosen.annotations == {"note": "a b:c"}
    assert (chosen.requests, chosen.limits) == ({"cpu": "4", "memory": "32Gi"}, {"cpu": "8"})


@pytest.mark.parametrize(
    "given",
    [
        {"namespace": "Team"},
        {"service_type": "Ingress"},
        {"address_timeout": 0.0},
        {"forward_port": 70000},
        {"node_address": "http://node"},
        {"node_selector": "gpu"},
        {"node_selector": "-bad=x"},
        {"tolerations": "key:Sometimes"},
        {"pvc": "ckpt"},
        {"pvc": "ckpt/../etc:/models"},
        {"pvc": "ckpt:/"},
        {"pvc": "ckpt:/models:rx"},
        {"cpu": "many"},
        {"memory": "32Gi:lots"},
        {"shm_size": "0"},
        {"shm_size": "big"},
        {"labels": "tao-job-id=other"},
        {"annotations": "tao-registry=other"},
        {"image_pull_secret": "No Such"},
        {"image_pull_secret": "a", "create_image_pull_secret": True},
        {"none_such": "1"},
    ],
)
def test_what_has_no_meaning_is_refused_with_its_name_and_a_fix(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as refused:
        settings(image=NGC_IMAGE, **given)
    assert refused.value.fix
    option = next(iter(given)).replace("_", "-")
    assert option in refused.value.message


def test_an_image_of_ngc_needs_a_pull_secret() -> None:
    with pytest.raises(BadInput, match="without a secret"):
        settings(image=NGC_IMAGE)
    assert settings(image=NGC_IMAGE, image_pull_secret="ngc").image_pull_secret == "ngc"
    assert settings(image=NGC_IMAGE, create_image_pull_secret=True).create_image_pull_secret


def test_the_ngc_key_is_sent_to_no_other_registry() -> None:
    with pytest.raises(BadInput, match="is not sent to evil"):
        settings(image="evil.example/nvcr.io/x:1", create_image_pull_secret=True)


def test_hours_become_the_clusters_deadline() -> None:
    assert options.settings(launch_spec(image="example.com/i:1", max_hours=1.5)).deadline_seconds == 5400
    assert options.settings(launch_spec(image="example.com/i:1", max_hours=0.00001)).deadline_seconds == 1


@given(number=st.integers(1, 10**6), unit=st.sampled_from(["", "k", "m", "g", "K", "Mi", "gb", "GiB"]))
def test_a_size_is_written_as_for_docker_or_for_kubernetes(number: int, unit: str) -> None:
    size = settings(shm_size=f"{number}{unit}").shm_size
    assert size == str(number) + {"": "", "k": "Ki", "m": "Mi", "g": "Gi"}[unit[:1].lower()]


@pytest.mark.parametrize(
    "changes",
    [
        {"job_id": "Upper"},
        {"job_id": "x" * 60},
        {"job_id": "-x"},
        {"network_arch": "no/arch"},
        {"mounts": (Mount("relative", "/x"),)},
        {"mounts": (Mount("/data", "/"),)},
    ],
)
def test_a_spec_that_no_cluster_takes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        platforms.load("kubernetes").check(launch_spec(**changes))

"""Whether the cluster has room: GPUs on one node, and the namespace's quota."""

from __future__ import annotations

from typing import Any

import kubernetes_capacity as capacity
import kubernetes_options as options
import pytest
from kubernetes_engine import launch_spec

from inference_service.errors import ToolError

GPU = "nvidia.com/gpu"
TOLERATED = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]


def node(name: str, gpus: int, ready: str = "True", **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": more.pop("labels", {})},
        "spec": more,
        "status": {"allocatable": {GPU: str(gpus)}, "conditions": [{"type": "Ready", "status": ready}]},
    }


def pod(on: str | None, *gpus: int, init: int = 0) -> dict[str, Any]:
    def containers(*counts: int) -> list[dict[str, Any]]:
        return [{"resources": {"requests": {GPU: str(count)}}} if count else {} for count in counts]

    spec: dict[str, Any] = {"containers": containers(*gpus), "initContainers": containers(init)}
    return {"spec": {**spec, "nodeName": on} if on else spec}


def free(nodes: list[Any], pods: list[Any], selector: dict[str, str] | None = None) -> dict[str, int]:
    return {item.node: item.free for item in capacity.gpus_of(nodes, pods, selector or {}, TOLERATED)}


def test_gpus_in_use_are_not_free() -> None:
    pods = [pod("a", 2, 1), pod("a", 0, init=2), pod("b", 8), pod(None, 4)]
    assert free([node("a", 8), node("b", 8)], pods) == {"a": 3, "b": 0}


def test_nodes_that_the_pod_cannot_run_on_do_not_count() -> None:
    keeps_away = [{"key": "dedicated", "value": "ml", "effect": "NoSchedule"}]
    gpu_taint = [{"key": GPU, "value": "present", "effect": "NoSchedule"}]
    rather_not = [{"key": "other", "effect": "PreferNoSchedule"}]
    nodes = [
        node("tainted", 8, taints=keeps_away),
        node("cordoned", 8, unschedulable=True),
        node("down", 8, ready="Unknown"),
        node("cpu-only", 0),
        node("gpu", 4, taints=gpu_taint),
        node("rather-not", 2, taints=rather_not),
    ]
    assert free(nodes, []) == {"gpu": 4, "rather-not": 2}


def test_a_node_selector_is_kept() -> None:
    nodes = [node("a", 8, labels={"gpu": "a100"}), node("b", 8, labels={"gpu": "t4"})]
    assert free(nodes, [], {"gpu": "a100"}) == {"a": 8}


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ("dedicated", True),
        ("dedicated=ml", True),
        ("dedicated=ml:NoSchedule", True),
        ("dedicated=other", False),
        ("dedicated=ml:NoExecute", False),
        ("another", False),
    ],
)
def test_tolerations_are_matched_as_kubernetes_does(toleration: str, tolerated: bool) -> None:
    chosen = options.settings(launch_spec(platform_options={"tolerations": toleration})).tolerations
    tainted = node("a", 8, taints=[{"key": "dedicated", "value": "ml", "effect": "NoSchedule"}])
    assert bool(capacity.gpus_of([tainted], [], {}, chosen)) is tolerated


def test_more_than_any_node_has_is_refused_with_what_would_fit() -> None:
    found = [capacity.NodeGpus("a", 8, 8), capacity.NodeGpus("b", 4, 4)]
    with pytest.raises(ToolError, match="would wait for ever") as refused:
        capacity.refuse_too_large(found, 9, {})
    assert refused.value.fix == "use --num-gpus 8"
    capacity.refuse_too_large(found, 8, {})


def test_what_is_in_use_now_is_refused_with_the_way_to_wait() -> None:
    with pytest.raises(ToolError, match="at most 1 of 8") as refused:
        capacity.refuse_too_large([capacity.NodeGpus("a", 8, 1)], 2, {"gpu": "a100"})
    assert "--allow-pending" in refused.value.fix
    assert "gpu=a100" in refused.value.message


def test_a_cluster_without_gpus_says_so() -> None:
    with pytest.raises(ToolError) as refused:
        capacity.refuse_too_large([], 1, {})
    assert "device plugin" in refused.value.fix


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("2", 2), ("500m", 0.5), ("1Ki", 1024), ("1k", 1000), ("1.5Gi", 1.5 * 2**30), ("2e3", 2000), ("nonsense", 0)],
)
def test_quantities_are_read(quantity: str, number: float) -> None:
    assert capacity.amount(quantity) == pytest.approx(number)


def quota(hard: dict[str, str], used: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used}}


def over(hard: dict[str, str], used: dict[str, str] | None = None, **changes: Any) -> str:
    spec = launch_spec(**changes)
    return capacity.over_quota([quota(hard, used or {})], capacity.needed(spec, options.settings(spec)))


def test_a_quota_counts_what_a_service_takes() -> None:
    assert "pods" in over({"pods": "3"}, {"pods": "3"})
    assert over({"pods": "4"}, {"pods": "3"}) == ""
    assert f"requests.{GPU}" in over({f"requests.{GPU}": "4"}, {f"requests.{GPU}": "3"}, num_gpus=2)
    assert over({"secrets": "0"}) == ""
    assert "secrets" in over({"secrets": "0"}, secret_env=("HF_TOKEN",))
    balancer = {"platform_options": {"service-type": "LoadBalancer"}}
    assert "services.loadbalancers" in over({"services.loadbalancers": "0"}, **balancer)
    assert over({"services.loadbalancers": "0"}) == ""
    memory = {"platform_options": {"memory": "2Gi:4Gi"}}
    assert "limits.memory" in over({"limits.memory": "3Gi"}, **memory)
    assert over({"requests.memory": "3Gi"}, **memory) == ""


def test_a_quota_for_some_pods_only_is_left_to_the_cluster() -> None:
    spec = launch_spec()
    takes = capacity.needed(spec, options.settings(spec))
    assert capacity.over_quota([quota({"pods": "0"}, {}, scopes=["BestEffort"])], takes) == ""

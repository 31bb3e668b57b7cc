"""What a real cluster refuses, by rights, quota and names: said as it is, and nothing is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kubernetes_engine import (
    Namespace,
    account,
    answer,
    entry_of,
    launch_spec,
    need_gpus,
    needed_rights,
    running,
    silent,
    told,
)

from inference_service.contracts import Driver, Progress, State
from inference_service.errors import BadInput, ToolError

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


def test_an_account_without_rights_is_told_so_and_nothing_is_made(
    kubernetes: Driver, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(account(namespace, tmp_path / "nobody", [])))
    with pytest.raises(ToolError) as refused:
        kubernetes.start(launch_spec(), silent)
    assert refused.value.type == "kubernetes_forbidden"
    assert "SKILL.md" in refused.value.fix
    assert namespace.left() == {}
    failed = {check.name: check for check in kubernetes.preflight() if not check.ok}
    assert "create jobs" in failed["rights"].found
    assert "kubernetes_role.yaml" in failed["rights"].fix


@pytest.mark.xdist_group("kubernetes-gpus")
def test_the_rights_that_the_skill_lists_are_enough_for_everything(
    kubernetes: Driver, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    monkeypatch.setenv("KUBECONFIG", str(account(namespace, tmp_path / "user", needed_rights())))
    assert all(check.ok for check in kubernetes.preflight()), kubernetes.preflight()
    said: list[Progress] = []
    spec = launch_spec(secret_env=("HF_TOKEN",), num_gpus=need_gpus(namespace, 0) and 1)
    entry = entry_of(kubernetes.start(spec, said.append))
    assert "Directory listing" in answer(entry)
    assert any("may not list" in step.message for step in said)
    assert any("GET / HTTP" in line for line in kubernetes.logs(entry, None, False))
    assert [item.job_id for item in kubernetes.discover()] == [entry.job_id]
    kubernetes.stop(entry)
    assert namespace.left() == {}
    # NodePorts need an address that this account cannot look up.
    with pytest.raises(ToolError) as refused:
        kubernetes.start(launch_spec(platform_options={"service-type": "NodePort"}), silent)
    assert "--node-address" in refused.value.fix


def test_a_quota_that_is_used_up_is_seen_before_anything_is_made(kubernetes: Driver, namespace: Namespace) -> None:
    namespace.quota(**{"count/jobs.batch": "0"})
    with pytest.raises(ToolError) as refused:
        kubernetes.start(launch_spec(), silent)
    assert refused.value.type == "quota_exceeded"
    assert "count/jobs.batch" in refused.value.message
    assert namespace.left() == {}


def test_a_quota_that_only_the_pod_meets_is_why_it_is_pending(kubernetes: Driver, namespace: Namespace) -> None:
    namespace.quota(**{"requests.memory": "1Gi"})
    entry = entry_of(kubernetes.start(launch_spec(), silent))
    status = told(kubernetes, entry, "quota")
    assert status.state is State.PENDING
    assert "must specify requests.memory" in status.reason
    kubernetes.stop(entry)
    options = {"service-type": "ClusterIP", "memory": "64Mi"}
    entry = entry_of(kubernetes.start(launch_spec(platform_options=options), silent))
    running(kubernetes, entry)
    kubernetes.stop(entry)
    assert namespace.left() == {}


def test_a_namespace_that_does_not_exist_is_named(kubernetes: Driver, namespace: Namespace) -> None:
    options = {"service-type": "ClusterIP", "namespace": "none-such"}
    with pytest.raises(ToolError) as refused:
        kubernetes.start(launch_spec(platform_options=options), silent)
    assert refused.value.type == "namespace_not_found"
    assert refused.value.fix == "kubectl create namespace none-such"


def test_a_context_that_does_not_exist_is_refused_with_those_that_do(kubernetes: Driver, namespace: Namespace) -> None:
    options = {"service-type": "ClusterIP", "context": "none-such"}
    with pytest.raises(BadInput) as refused:
        kubernetes.start(launch_spec(platform_options=options), silent)
    assert "test" in refused.value.fix


def test_another_current_context_does_not_make_a_service_look_gone(
    kubernetes: Driver, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = entry_of(kubernetes.start(launch_spec(), silent))
    running(kubernetes, entry)
    elsewhere = {"apiVersion": "v1", "kind": "Config", "contexts": [], "clusters": [], "users": []}
    (tmp_path / "elsewhere").write_text(json.dumps(elsewhere))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "elsewhere"))
    assert kubernetes.status(entry).state is State.RUNNING
    kubernetes.stop(entry)
    assert namespace.left() == {}

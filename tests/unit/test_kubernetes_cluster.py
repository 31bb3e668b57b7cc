"""Which cluster, as whom; what the API server's refusals become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_cluster as clusters
import kubernetes_errors as errors
import pytest
import yaml

from inference_service.errors import BadInput, ToolError


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    contexts = {"dev": {"cluster": "c", "user": "u", "namespace": "team"}, "prod": {"cluster": "c", "user": "u"}}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dev",
        "contexts": [{"name": name, "context": context} for name, context in contexts.items()],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
    }
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(document))
    return file


def environ(kubeconfig: Path, **more: str) -> dict[str, str]:
    return {"KUBECONFIG": str(kubeconfig), **more}


def test_the_option_wins_over_the_environment_and_that_over_the_current_context(kubeconfig: Path) -> None:
    assert clusters.find(environ=environ(kubeconfig)).context == "dev"
    assert clusters.find(environ=environ(kubeconfig, TAO_K8S_CONTEXT="prod")).context == "prod"
    assert clusters.find("dev", environ=environ(kubeconfig, TAO_K8S_CONTEXT="prod")).context == "dev"


def test_the_namespace_is_the_option_the_contexts_own_or_default(kubeconfig: Path) -> None:
    assert clusters.find(environ=environ(kubeconfig)).namespace == "team"
    assert clusters.find(namespace="mine", environ=environ(kubeconfig)).namespace == "mine"
    assert clusters.find("prod", environ=environ(kubeconfig)).namespace == "default"


def test_an_unknown_context_is_refused_with_those_there_are(kubeconfig: Path) -> None:
    with pytest.raises(BadInput) as refused:
        clusters.find("none", environ=environ(kubeconfig))
    assert "dev, prod" in refused.value.fix


def test_a_file_without_a_current_context_still_has_the_one_that_is_named(kubeconfig: Path) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    del document["current-context"]
    kubeconfig.write_text(yaml.safe_dump(document))
    assert clusters.find("prod", environ=environ(kubeconfig)).context == "prod"
    with pytest.raises(BadInput, match="no current context"):
        clusters.find(environ=environ(kubeconfig))


def test_a_broken_kubeconfig_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("{nonsense")
    with pytest.raises(ToolError):
        clusters.find(environ=environ(tmp_path / "broken"))


def test_without_a_kubeconfig_a_pod_uses_its_own_cluster_and_others_are_told_what_to_do(tmp_path: Path) -> None:
    nothing = {"HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    with pytest.raises(ToolError, match="no kubeconfig"):
        clusters.find(environ=nothing)
    inside = clusters.find(environ={**nothing, "KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert inside.in_cluster
    assert inside.namespace == "default"


def test_an_entry_remembers_its_cluster(kubeconfig: Path, tmp_path: Path) -> None:
    access = clusters.find("prod", "mine", environ(kubeconfig))
    assert clusters.of_entry(access.extras(), environ={}) == access


def test_a_start_that_was_killed_is_looked_for_where_its_options_say(kubeconfig: Path) -> None:
    reserved = {"platform_options": {"context": "prod", "namespace": "mine"}}
    access = clusters.of_entry(reserved, environ(kubeconfig))
    assert (access.context, access.namespace) == ("prod", "mine")


def refusal(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Any:
    from kubernetes.client.exceptions import ApiException

    error = ApiException(status=status, reason="Reason")
    error.body, error.headers = json.dumps({"kind": "Status", "message": message}), headers or {}
    return error


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (401, "Unauthorized", "kubernetes_unauthorized"),
        (403, 'jobs.batch is forbidden: User "x" cannot create resource', "kubernetes_forbidden"),
        (403, "exceeded quota: q, requested: pods=1", "quota_exceeded"),
        (404, 'namespaces "x" not found', "namespace_not_found"),
        (422, "Job.batch is invalid: spec.template", "kubernetes_refused"),
        (500, "etcdserver: request timed out", "kubernetes_error"),
    ],
)
def test_a_refusal_is_named_and_quoted_with_what_to_do(status: int, message: str, kind: str) -> None:
    error = errors.failure(refusal(status, message), "https://api", "team")
    assert error.type == kind
    assert error.fix
    assert message in error.message or kind == "namespace_not_found"


def test_only_what_may_pass_is_tried_again() -> None:
    assert [errors.is_passing(refusal(status)) for status in (401, 403, 404, 409, 422)] == [False] * 5
    assert all(errors.is_passing(refusal(status)) for status in (429, 500, 502, 503, 504))
    assert errors.is_passing(ConnectionResetError())
    assert not errors.is_passing(OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"))


def test_the_api_server_may_say_how_long_to_wait() -> None:
    assert errors.retry_after(refusal(429, headers={"Retry-After": "3"})) == 3
    assert errors.retry_after(refusal(429)) is None


def test_a_no_for_certain_is_told_from_silence() -> None:
    assert errors.is_refusal(refusal(403))
    assert not errors.is_refusal(refusal(500))
    assert not errors.is_refusal(ConnectionResetError())
    assert not errors.is_refusal(None)


def test_a_missing_client_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kubernetes", None)
    with pytest.raises(ToolError) as refused:
        clusters.package()
    assert (refused.value.type, refused.value.details["extra"]) == ("missing_dependency", "kubernetes")

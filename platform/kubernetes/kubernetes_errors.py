"""What the API server says when it refuses, as what happened and what to do next; and which refusals pass."""

from __future__ import annotations

import json
import re
from typing import Any

from inference_service.errors import ToolError

_SKILL = "platform/kubernetes/SKILL.md"
# Too many requests, an API server or an etcd that is being restarted, a webhook that timed out.
_PASSING = (429, 500, 502, 503, 504)
_QUOTA = re.compile(r"exceeded quota|must specify (limits|requests)", re.IGNORECASE)
_NAMESPACE = re.compile(r'namespaces? "?(?P<name>[a-z0-9-]+)"? not found')


def expected() -> tuple[type[Exception], ...]:
    """The exceptions by which a call to the API server fails."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    return (ApiException, HTTPError, OSError)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the API server answered with; None when there was no answer."""
    return getattr(error, "status", None) or None


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well succeed a moment later."""
    status = status_of(error)
    if status is None:
        return not _is_certificate(error)
    return status in _PASSING


def is_refusal(error: BaseException | None) -> bool:
    """Whether the API server has said no for certain, and so has changed nothing."""
    status = status_of(error) if error is not None else None
    return status is not None and 400 <= status < 500


def retry_after(error: BaseException) -> float | None:
    """The seconds that the API server wants us to wait, where it says so."""
    value = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return float(value) if str(value).isdecimal() else None


def explanation(error: BaseException) -> str:
    """The API server's own words."""
    try:
        body: Any = json.loads(getattr(error, "body", None) or "")
        return str(body["message"])
    except (ValueError, KeyError, TypeError):
        return str(getattr(error, "reason", None) or error).strip()


def failure(error: BaseException, server: str, namespace: str) -> ToolError:
    """The error for a call to `server` that failed for good."""
    status, told = status_of(error), explanation(error)
    if status is None:
        return _unreachable(error, server)
    if status == 401:
        return ToolError(
            "kubernetes_unauthorized",
            f"the cluster at {server} does not know who is asking: {told}",
            "log in to the cluster again (its kubeconfig's credentials have expired or are wrong)",
        )
    missing = _NAMESPACE.search(told)
    if missing and status in (403, 404):
        return ToolError(
            "namespace_not_found",
            f"the namespace {missing['name']} does not exist",
            f"kubectl create namespace {missing['name']}",
        )
    if status == 403 and _QUOTA.search(told):
        return ToolError(
            "quota_exceeded",
            f"the quota of the namespace {namespace} refuses it: {told}",
            f"kubectl -n {namespace} describe quota; stop a service, or name what it asks for: --cpu, --memory",
        )
    if status == 403:
        return ToolError(
            "kubernetes_forbidden",
            f"this account may not do that: {told}",
            f"have an administrator grant the Role in {_SKILL} in the namespace {namespace}",
        )
    if status == 422:
        return ToolError("kubernetes_refused", f"the cluster refuses it: {told}", "correct the option that it names")
    return ToolError(
        "kubernetes_error",
        f"the cluster at {server} answered {status}: {told}",
        "python scripts/preflight.py --platform kubernetes",
    )


def _unreachable(error: BaseException, server: str) -> ToolError:
    if _is_certificate(error):
        return ToolError(
            "kubernetes_certificate",
            f"the certificate of the cluster at {server} cannot be trusted: {explanation(error)}",
            "get a new kubeconfig from whoever runs the cluster",
        )
    return ToolError(
        "kubernetes_unreachable",
        f"the cluster at {server} cannot be reached: {explanation(error)}",
        "kubectl cluster-info; another context is chosen with --context or TAO_K8S_CONTEXT",
    )


def _is_certificate(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error) or "certificate verify failed" in str(error)

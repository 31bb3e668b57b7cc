"""Which cluster, as whom, and calls to its API server that outlast a bad moment.

Answers are JSON as the API server sent it: the client's own objects take seconds to make on a large cluster, and plain
JSON is what pure functions can be tested with.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_errors

from inference_service.errors import BadInput, ToolError

PLATFORM = "kubernetes"
CONTEXT_ENV = "TAO_K8S_CONTEXT"

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONNECT_SECONDS, _READ_SECONDS = 10, 60
_PATIENCE_SECONDS = 30.0
# Somebody waits at the terminal: a cluster that was never reached is soon said to be unreachable.
_FIRST_PATIENCE_SECONDS = 3.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0


@dataclass(frozen=True)
class Access:
    """How a cluster is reached: a context of kubeconfig files (in KUBECONFIG's form), or from inside a pod of it.

    `namespace` is where things are when nothing else is said.
    """

    namespace: str
    context: str | None = None
    kubeconfig: str | None = None

    @property
    def in_cluster(self) -> bool:
        """Whether this is a pod of the cluster."""
        return self.kubeconfig is None

    def same_cluster(self, other: Access) -> bool:
        """Whether only the namespace differs."""
        return (self.context, self.kubeconfig) == (other.context, other.kubeconfig)

    def extras(self) -> dict[str, Any]:
        """What a registry entry remembers, so that a later command reaches the same cluster."""
        return {"namespace": self.namespace, "context": self.context, "kubeconfig": self.kubeconfig}


def package() -> Any:
    """The `kubernetes` package.

    Raises:
        ToolError: it is not installed.
    """
    try:
        import kubernetes
        import kubernetes.client
        import kubernetes.config
    except ImportError:
        raise ToolError(
            "missing_dependency",
            "the Python package kubernetes is not installed; the platform kubernetes needs it",
            f'{sys.executable} -m pip install "kubernetes>=31"',
            extra="kubernetes",
        ) from None
    return kubernetes


def find(context: str | None = None, namespace: str | None = None, environ: Mapping[str, str] = os.environ) -> Access:
    """The cluster that the options and the environment name.

    It is that of `context`, of TAO_K8S_CONTEXT or of the kubeconfig's current context; where there is no kubeconfig,
    the one whose pod this is.

    Raises:
        BadInput: there is no such context.
        ToolError: there is no cluster, or the kubeconfig cannot be read.
    """
    wanted = context or environ.get(CONTEXT_ENV) or None
    kubeconfig = _kubeconfig(environ)
    if kubeconfig is None:
        if not environ.get("KUBERNETES_SERVICE_HOST"):
            raise ToolError(
                "no_cluster",
                "no kubeconfig was found: neither KUBECONFIG nor ~/.kube/config names a file that exists",
                "export KUBECONFIG=/path/to/kubeconfig, or have your cluster's tool write one (kind, aws, gcloud, az)",
            )
        return Access(namespace or _namespace_of_this_pod())
    name, details = _contexts(kubeconfig, wanted)
    return Access(namespace or details.get("namespace") or "default", name, kubeconfig)


def of_entry(extras: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Access:
    """The access that `Access.extras` described, as far as it still exists.

    A service whose start was killed is where its options say.
    """
    options = extras.get("platform_options") or {}
    kubeconfig = extras.get("kubeconfig")
    context, namespace = (extras.get(name) or options.get(name) for name in ("context", "namespace"))
    if kubeconfig and context and any(Path(file).exists() for file in str(kubeconfig).split(os.pathsep)):
        return Access(str(namespace or "default"), str(context), str(kubeconfig))
    return find(context and str(context), namespace and str(namespace), environ)


class Cluster:
    """An API server. Made without I/O towards it."""

    def __init__(self, access: Access) -> None:
        kubernetes = package()
        self.access = access
        self._client_package = kubernetes.client
        configuration = kubernetes.client.Configuration()
        try:
            if access.in_cluster:
                kubernetes.config.load_incluster_config(client_configuration=configuration)
            else:
                kubernetes.config.load_kube_config(
                    config_file=access.kubeconfig, context=access.context, client_configuration=configuration
                )
        except Exception as error:  # whatever its parsers and credential plugins come up with
            raise _bad_kubeconfig(access.kubeconfig or "in-cluster configuration", error) from error
        # Whether and how long to try again is decided here, for every kind of call alike.
        configuration.retries = False
        self.api_client = kubernetes.client.ApiClient(configuration=configuration)
        self._reached = False

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self.api_client.configuration.host)

    @functools.cached_property
    def core(self) -> Any:
        """The client's CoreV1Api."""
        return self._client_package.CoreV1Api(self.api_client)

    @functools.cached_property
    def batch(self) -> Any:
        """The client's BatchV1Api."""
        return self._client_package.BatchV1Api(self.api_client)

    @functools.cached_property
    def authorization(self) -> Any:
        """The client's AuthorizationV1Api."""
        return self._client_package.AuthorizationV1Api(self.api_client)

    @functools.cached_property
    def version(self) -> Any:
        """The client's VersionApi."""
        return self._client_package.VersionApi(self.api_client)

    def ask(
        self, call: Callable[..., Any], *arguments: Any, patience: float = _PATIENCE_SECONDS, **options: Any
    ) -> Any:
        """The JSON that one call answers. Passing failures are tried again for `patience` seconds.

        Raises:
            ToolError: it failed for good.
        """
        try:
            return self.try_ask(call, *arguments, patience=patience, **options)
        except kubernetes_errors.expected() as error:
            raise self.failure(error) from error

    def ask_or_none(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The same, but None when what is asked for does not exist."""
        try:
            return self.try_ask(call, *arguments, **options)
        except kubernetes_errors.expected() as error:
            if kubernetes_errors.status_of(error) == 404:
                return None
            raise self.failure(error) from error

    def try_ask(
        self, call: Callable[..., Any], *arguments: Any, patience: float = _PATIENCE_SECONDS, **options: Any
    ) -> Any:
        """The same as `ask`, but raises the client's own exception."""
        began, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
        timeout = (_CONNECT_SECONDS, _READ_SECONDS)
        while True:
            try:
                answer = call(*arguments, _preload_content=False, _request_timeout=timeout, **options)
                self._reached = True
                return json.loads(answer.data)
            except kubernetes_errors.expected() as error:
                self._reached = self._reached or kubernetes_errors.status_of(error) is not None
                if not kubernetes_errors.is_passing(error):
                    raise
                wait = min(kubernetes_errors.retry_after(error) or pause, patience)
                limit = patience if self._reached else min(patience, _FIRST_PATIENCE_SECONDS)
                if time.monotonic() - began + wait > limit:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def lines(
        self, call: Callable[..., Any], *arguments: Any, read_timeout: float | None, **options: Any
    ) -> Iterator[bytes]:
        """The lines, without their ends, of an answer that goes on and on (a watch, a log).

        Raises the client's own exceptions.
        """
        timeout = (_CONNECT_SECONDS, read_timeout or 10 * 365 * 86400)
        answer = call(*arguments, _preload_content=False, _request_timeout=timeout, **options)
        rest = b""
        try:
            for chunk in answer.stream(64 * 1024, decode_content=True):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
            if rest:
                yield rest
        finally:
            answer.close()

    def failure(self, error: BaseException) -> ToolError:
        """The error for a call that failed for good."""
        return kubernetes_errors.failure(error, self.server, self.access.namespace)


def _kubeconfig(environ: Mapping[str, str]) -> str | None:
    named = environ.get("KUBECONFIG") or str(Path(environ.get("HOME") or "~").expanduser() / ".kube" / "config")
    files = [str(Path(file).absolute()) for file in named.split(os.pathsep) if file and Path(file).exists()]
    return os.pathsep.join(files) or None


def _contexts(kubeconfig: str, wanted: str | None) -> tuple[str, Mapping[str, Any]]:
    by_name: dict[str, Mapping[str, Any]] = {}
    current = None
    for file in kubeconfig.split(os.pathsep):
        document = _parsed(file)
        current = current or document.get("current-context")
        for item in document.get("contexts") or ():
            # As kubectl merges them: the first file that has a name wins.
            by_name.setdefault(str(item["name"]), item.get("context") or {})
    name = wanted or current
    if name not in by_name:
        raise BadInput(
            "unknown_context",
            f"{kubeconfig} has no context {name!r}" if name else f"{kubeconfig} has no current context",
            f"choose one with --context or {CONTEXT_ENV}: {', '.join(sorted(by_name)) or 'it has none'}",
        )
    return name, by_name[name]


def _parsed(file: str) -> Mapping[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _bad_kubeconfig(file, error) from error
    if not isinstance(document, Mapping):
        raise _bad_kubeconfig(file, ValueError("it is no kubeconfig"))
    return document


def _bad_kubeconfig(where: str, error: Exception) -> ToolError:
    return ToolError(
        "kubeconfig_unusable", f"{where} cannot be used: {error}", "kubectl config view shows what is wrong with it"
    )


def _namespace_of_this_pod() -> str:
    try:
        return (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip() or "default"
    except OSError:
        return "default"

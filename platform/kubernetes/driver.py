"""Services as Jobs of a Kubernetes cluster, through the official client (facts: kubernetes; seed 4.2, 4.3, 5).

A service is a Job with one pod, a Service in front of it and a Secret for what it may know, all named `tao-<job_id>`
and owned by the Job. The context and the namespace are remembered with each service: another current context later does
not make it look gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import kubernetes_cluster as clusters
import kubernetes_objects as objects
import kubernetes_options as options
from kubernetes_cluster import Access, Cluster

from inference_service.contracts import (
    Check,
    LaunchSpec,
    PlatformOption,
    PlatformStatus,
    Progress,
    Report,
    ServiceEntry,
    StartedService,
    State,
)
from inference_service.errors import BadInput, ToolError

_STATUS_PATIENCE_SECONDS = 2.0
_DRY_RUN_NAMESPACE = "default"


class Driver:
    """The platform kubernetes; see contracts.Driver for what each method promises."""

    name = clusters.PLATFORM
    options: tuple[PlatformOption, ...] = options.OPTIONS
    # A port-forward listens on any free port, and a Service has an address of its own.
    needs_host_port = False

    def __init__(self) -> None:
        self._clusters: dict[Access, Cluster] = {}

    def preflight(self) -> list[Check]:
        """The client, the cluster, this account's rights, GPUs and the right to pull images."""
        import kubernetes_preflight

        return kubernetes_preflight.checks()

    def check(self, spec: LaunchSpec) -> None:
        """Refuse names, options and mounts that no cluster takes. Asks no cluster."""
        options.check_spec(spec)
        options.settings(spec)

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        """The objects that `start` would create, as a List that kubectl takes; secrets are `${NAME}`."""
        self.check(spec)
        settings = options.settings(spec)
        made = objects.build(spec, settings, settings.namespace or _DRY_RUN_NAMESPACE)
        return {"apiVersion": "v1", "kind": "List", "items": made.all()}

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        """Make the objects, release the pod, and find out where it answers (a load balancer takes its time)."""
        import kubernetes_starting

        from inference_service import secrets

        self.check(spec)
        settings = options.settings(spec)
        values = secrets.read((*spec.secret_env, *objects.pull_secret_needs(settings)))
        cluster = self._cluster(clusters.find(settings.context, settings.namespace))
        return kubernetes_starting.start(cluster, spec, settings, values, report)

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        """One list of pods; while none runs also the Job and the events that explain it."""
        import kubernetes_status

        try:
            cluster = self._cluster_of(entry)
            namespace, name = cluster.access.namespace, objects.name_of(entry.job_id)
            return kubernetes_status.ask(cluster, namespace, name, entry.job_id, _STATUS_PATIENCE_SECONDS)
        except ToolError as error:
            return PlatformStatus(State.UNKNOWN, error.message)

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        """The container's output and errors as they came."""
        import kubernetes_logs

        cluster = self._cluster_of(entry)
        namespace = cluster.access.namespace
        return kubernetes_logs.lines(cluster, namespace, entry.job_id, tail, follow, lambda: self.status(entry))

    def stop(self, entry: ServiceEntry) -> None:
        """End the port-forward and delete the Job with everything that belongs to it."""
        import kubernetes_forward as forward
        import kubernetes_starting

        forward.end_all(entry.job_id, forward.from_json(entry.extras.get(forward.FIELD)))
        secrets = [str(name) for name in entry.extras.get("secrets") or ()]
        kubernetes_starting.remove(self._cluster_of(entry), entry.job_id, secrets)

    def discover(self) -> list[StartedService]:
        """Our services on the cluster that the environment names."""
        import kubernetes_discovery

        from inference_service.registry import STARTING, Registry

        cluster = self._cluster(clusters.find())
        registered = [entry for entry in Registry().read().services.values() if entry.platform == self.name]
        starting = {entry.job_id for entry in registered if entry.status == STARTING}
        namespaces = {cluster.access.namespace, *_namespaces_of(registered, cluster.access)}
        return kubernetes_discovery.discover(cluster, sorted(namespaces), starting)

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        """The entry as it can be reached now.

        A port-forward that died is opened again, once; a load balancer's address that had not come yet is asked for.
        """
        import kubernetes_forward as forward

        if entry.extras.get("service_type") != options.CLUSTER_IP or entry.extras.get("kubeconfig") is None:
            return entry if entry.host_url else self._with_address(entry)
        remembered = forward.from_json(entry.extras.get(forward.FIELD))
        if remembered is not None and remembered.alive:
            return entry
        with forward.alone(entry.job_id):
            found = forward.running(entry.job_id)
            if not found:
                found = [self._forward_again(entry)]
                told = f"the port-forward of {entry.job_id} had ended and was opened again: {found[0].url}"
                report(Progress("port-forward", told))
        extras = {**entry.extras, forward.FIELD: found[0].to_json()}
        return replace(entry, host_url=found[0].url, host_port=found[0].port, extras=extras)

    def _forward_again(self, entry: ServiceEntry) -> Any:
        import kubernetes_forward as forward

        access = self._cluster_of(entry).access
        try:
            listener = forward.listen(entry.host_port)
        except BadInput:
            listener = forward.listen(None)  # A stranger has it now; the registry will know the new one.
        with listener:
            return forward.start(listener, access, entry.job_id, self._container_port(entry))

    def _container_port(self, entry: ServiceEntry) -> int:
        from inference_service import references

        # The port in the Service's own address, which was noted when it was started.
        _host, _colon, port = (entry.docker_url or "").rpartition(":")
        return int(port) if port.isdecimal() else references.load().container_port

    def _with_address(self, entry: ServiceEntry) -> ServiceEntry:
        import kubernetes_discovery

        cluster = self._cluster_of(entry)
        name, namespace = objects.name_of(entry.job_id), cluster.access.namespace
        service = cluster.ask_or_none(cluster.core.read_namespaced_service, name, namespace)
        url = kubernetes_discovery.url_of(cluster, service)
        if not url:
            raise ToolError(
                "no_address",
                f"the service {entry.job_id} has no address yet",
                f"kubectl -n {namespace} get service {name}; or stop it and start it with --service-type ClusterIP",
            )
        return replace(entry, host_url=url)

    def _cluster(self, access: Access) -> Cluster:
        if access not in self._clusters:
            self._clusters[access] = Cluster(access)
        return self._clusters[access]

    def _cluster_of(self, entry: ServiceEntry) -> Cluster:
        return self._cluster(clusters.of_entry(entry.extras))


def _namespaces_of(entries: Iterable[ServiceEntry], access: Access) -> Iterator[str]:
    """The namespaces of those entries that are on the same cluster."""
    for entry in entries:
        # An entry may be of a context that exists no longer.
        with contextlib.suppress(ToolError):
            known = clusters.of_entry(entry.extras)
            if known.same_cluster(access):
                yield known.namespace

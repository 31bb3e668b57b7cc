"""Services as batch jobs of a Slurm cluster, through ssh to its login hosts (facts: slurm; seed 4.2, 4.3).

A job is submitted with one ssh connection and returned at once: it may wait in the queue for hours. Its service is
reached through an ssh tunnel from a port of this machine to the job's node, which `reach` opens once the job runs, and
again whenever it died. The cluster is remembered with the service (`slurm_connection`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import slurm_connection
import slurm_images
import slurm_jobs
import slurm_labels
import slurm_options
import slurm_script
import slurm_tunnel
from slurm_connection import Cluster
from slurm_states import Job

from inference_service import paths, ports
from inference_service.contracts import (
    JOB_ID_LABEL,
    MODEL_PATH_LABEL,
    NETWORK_ARCH_LABEL,
    REGISTRY_LABEL,
    STOP_AFTER_LABEL,
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
from inference_service.errors import BadInput, PortTaken, ToolError
from inference_service.interruption import held_back

PORT_FIELD, NODE_FIELD = "slurm_node_port", "slurm_node"
_ADDRESS = "127.0.0.1"
_NOTHING_SUBMITTED = ("login_unreachable", "ssh_missing", "sbatch_refused", "slurm_missing")
# An idle cluster begins a job within seconds: then the tunnel is there when start returns.
_MOST_PORTS_TRIED = 5
_BEGIN_SECONDS = 4


class Driver:
    """The platform slurm; see contracts.Driver for what each method promises."""

    name = "slurm"
    options: tuple[PlatformOption, ...] = slurm_options.OPTIONS
    needs_host_port = True

    def preflight(self) -> list[Check]:
        """ssh, the login hosts, Slurm, partition, account, GPUs, the container runtime, the registry login."""
        import slurm_preflight

        return slurm_preflight.checks()

    def check(self, spec: LaunchSpec) -> None:
        """Refuse options, mounts and images that cannot work. Asks no cluster."""
        settings = slurm_options.settings(spec)
        slurm_script.check_mounts(spec.mounts)
        slurm_images.check(spec.image, settings.runtime)

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        """The job script, how it is submitted, and the tunnel."""
        settings = slurm_options.settings(spec)
        try:
            cluster = slurm_connection.from_environ()
        except BadInput:
            cluster = Cluster(("$SLURM_HOSTNAME",), "$SLURM_USER")
        port = spec.host_port or "PORT"
        forward = f"{_ADDRESS}:{port}:NODE:{spec.container_port}"
        return {
            "login_hosts": [cluster.address(host) for host in cluster.hosts],
            "submit": "sbatch --parsable <job.sh",
            "folder": f"$HOME/{slurm_script.FOLDER}/{spec.job_id}",
            "job_script": slurm_script.build(
                spec, settings, slurm_labels.labels_of(spec, "STARTED", spec.stop_after())
            ),
            "secrets_file": {"names": list(spec.secret_env), "mode": "0600", "removed": "when the job has read it"},
            "tunnel": slurm_tunnel.command(cluster, cluster.hosts[0], forward),
        }

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        """Submit the job; where it begins within seconds, the tunnel is open when this returns."""
        from inference_service import secrets

        self.check(spec)
        if spec.host_port is None:
            raise BadInput(
                "no_host_port", f"no host port was reserved for {spec.job_id}", "choose one with --host-port"
            )
        if not ports.can_bind(spec.host_port, _ADDRESS):
            raise PortTaken(spec.host_port)
        cluster = slurm_connection.from_environ()
        env_file = slurm_script.env_file(secrets.read(spec.secret_env))
        started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        stop_after = spec.stop_after()
        labels = slurm_labels.labels_of(spec, started_at, stop_after)
        script = slurm_script.build(spec, slurm_options.settings(spec), labels)
        report(Progress("submitting", f"a job to {', '.join(map(cluster.address, cluster.hosts))}"))
        try:
            with held_back():
                number = slurm_jobs.submit(cluster, spec.job_id, script, env_file, report)
            report(Progress("submitted", f"Slurm job {number}", details={"platform_job_id": number}))
            started = replace(_started(spec, cluster, number, started_at), stop_after=stop_after)
            entry = self._begin(_entry(started), cluster, report)
        except BaseException as error:
            if not isinstance(error, ToolError) or error.type not in _NOTHING_SUBMITTED:
                with held_back(deliver=False):
                    _undo(cluster, spec.job_id, error)
            raise
        return replace(started, host_port=entry.host_port, host_url=entry.host_url, extras=entry.extras)

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        """One ssh connection: squeue, and for a job that it does not know sacct and scontrol."""
        try:
            found = self._ask(entry)
        except ToolError as error:
            return PlatformStatus(State.UNKNOWN, error.message)
        return found.status() if isinstance(found, Job) else found

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        """The job's output and errors, from its file in the user's home on the cluster."""
        import slurm_log

        return slurm_log.lines(slurm_connection.of_entry(entry), entry.job_id, tail, follow)

    def stop(self, entry: ServiceEntry) -> None:
        """Cancel the job, wait until Slurm has ended it, remove its folder there and its tunnel here."""
        slurm_tunnel.close(entry.job_id)
        slurm_jobs.stop(slurm_connection.of_entry(entry), entry.job_id, _number(entry))

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        """The entry with a tunnel that runs, when its job does. A job that waits is no error: it has no node yet."""
        if slurm_tunnel.of_entry(entry) is not None:
            return entry
        with slurm_tunnel.alone(entry.job_id):
            found = slurm_tunnel.find(entry.job_id, entry.host_port)
            if found is not None:
                return _with(entry, found.fields())
            job = self._ask(entry)
            if not isinstance(job, Job) or job.status().state is not State.RUNNING or not job.node:
                return entry
            return self._tunnelled(entry, job, report)

    def discover(self) -> list[StartedService]:
        """The jobs of our registry on the cluster that the environment names, waiting ones included."""
        cluster = slurm_connection.from_environ()
        ours = paths.shared_registry_owner()
        return [
            _discovered(found, cluster)
            for found in slurm_jobs.listed(cluster)
            if found.labels.get(REGISTRY_LABEL) == ours and JOB_ID_LABEL in found.labels
        ]

    def _ask(self, entry: ServiceEntry) -> Job | PlatformStatus:
        return slurm_jobs.ask(slurm_connection.of_entry(entry), entry.job_id, _number(entry))

    def _begin(self, entry: ServiceEntry, cluster: Cluster, report: Report) -> ServiceEntry:
        """The entry with its tunnel if the job begins soon; what keeps it waiting is reported."""
        job = slurm_jobs.ask(cluster, entry.job_id, _number(entry), patience=_BEGIN_SECONDS)
        status = job.status() if isinstance(job, Job) else job
        if isinstance(job, Job) and status.state is State.RUNNING and job.node:
            with slurm_tunnel.alone(entry.job_id):
                return self._tunnelled(entry, job, report)
        report(Progress(status.state.value.lower(), status.reason))
        return entry

    def _tunnelled(self, entry: ServiceEntry, job: Job, report: Report) -> ServiceEntry:
        cluster = slurm_connection.of_entry(entry)
        again = slurm_tunnel.PID_FIELD in entry.extras
        first = entry.extras.get(slurm_tunnel.HOST_FIELD)
        login = first if isinstance(first, str) else None
        node_port = _integer(entry.extras.get(PORT_FIELD)) or 8080
        port = entry.host_port or _free_port()
        for tried in range(1, _MOST_PORTS_TRIED + 1):
            try:
                found = slurm_tunnel.open(cluster, login, entry.job_id, port, job.node, node_port)
                break
            except PortTaken:
                # Somebody took it while the job waited or the tunnel was down. The job is not to be given up for that.
                if tried == _MOST_PORTS_TRIED:
                    raise
                taken, port = port, _free_port()
                report(Progress("tunnel", f"port {taken} was taken by another program, {port} is used instead"))
        told = "the ssh tunnel had ended and is open again" if again else "the ssh tunnel is open"
        report(Progress("tunnel", f"{told}: port {port} to {job.node}:{node_port} by {found.login}"))
        moved = replace(entry, host_port=port, host_url=_url(port))
        return _with(moved, {**found.fields(), NODE_FIELD: job.node})


def _started(spec: LaunchSpec, cluster: Cluster, number: str, started_at: str) -> StartedService:
    assert spec.host_port is not None  # noqa: S101
    return StartedService(
        job_id=spec.job_id,
        network_arch=spec.network_arch,
        platform=Driver.name,
        host_url=_url(spec.host_port),
        image=spec.image,
        model_path=spec.model_path,
        num_gpus=spec.num_gpus,
        platform_job_id=number,
        host_port=spec.host_port,
        started_at=started_at,
        extras={**cluster.fields(), PORT_FIELD: spec.container_port},
    )


def _discovered(found: slurm_jobs.Listed, cluster: Cluster) -> StartedService:
    labels = found.labels
    port = _integer(labels.get(slurm_labels.HOST_PORT_LABEL)) or _free_port()
    tunnel = slurm_tunnel.find(labels[JOB_ID_LABEL], port)
    return StartedService(
        job_id=labels[JOB_ID_LABEL],
        network_arch=labels.get(NETWORK_ARCH_LABEL, ""),
        platform=Driver.name,
        host_url=_url(port),
        image=labels.get(slurm_labels.IMAGE_LABEL, ""),
        model_path=labels.get(MODEL_PATH_LABEL, ""),
        num_gpus=_integer(labels.get(slurm_labels.NUM_GPUS_LABEL)) or 0,
        platform_job_id=found.job.job_id,
        host_port=port,
        started_at=labels.get(slurm_labels.STARTED_LABEL),
        stop_after=labels.get(STOP_AFTER_LABEL),
        extras={
            **cluster.fields(),
            PORT_FIELD: _integer(labels.get(slurm_labels.CONTAINER_PORT_LABEL)) or 8080,
            **(tunnel.fields() if tunnel else {}),
        },
    )


def _entry(started: StartedService) -> ServiceEntry:
    return ServiceEntry(
        job_id=started.job_id,
        network_arch=started.network_arch,
        platform=started.platform,
        host_url=started.host_url,
        platform_job_id=started.platform_job_id,
        host_port=started.host_port,
        extras=started.extras,
    )


def _undo(cluster: Cluster, job_id: str, error: BaseException) -> None:
    try:
        slurm_tunnel.close(job_id)
        slurm_jobs.stop(cluster, job_id, None)
    except ToolError as problem:
        if isinstance(error, ToolError):
            error.message += f"; what it left on the cluster could not be removed: {problem.message}"


def _with(entry: ServiceEntry, fields: Mapping[str, Any]) -> ServiceEntry:
    return replace(entry, extras={**entry.extras, **fields})


def _free_port() -> int:
    from inference_service import references
    from inference_service.registry import Registry

    refs = references.load()
    held = {entry.host_port for entry in Registry().read().services.values() if entry.host_port}
    return ports.lowest_free(range(refs.first_port, refs.last_port + 1), held, _ADDRESS)


def _number(entry: ServiceEntry) -> str | None:
    number = entry.platform_job_id
    return number if number and number.isdigit() else None


def _integer(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isdigit() else None


def _url(port: int) -> str:
    return f"http://localhost:{port}"

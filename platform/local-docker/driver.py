"""Services as containers of a Docker daemon, through its Engine API (facts: local-docker; seed 4.2).

A container carries the job_id as its name and in a label. It is made by `local_docker_container` from the launch spec,
reached through one published port, and removed by `stop` alone (a crashed server's log is needed). The daemon that
has a service is remembered with it: another DOCKER_HOST later does not make the service look gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import local_docker_container as container
import local_docker_daemon as daemon
import local_docker_options as options
from local_docker_inspection import DAEMON_FIELD, PLATFORM, discovered
from local_docker_interruption import uninterrupted
from local_docker_options import OPTIONS

from inference_service import docker_container, paths
from inference_service.contracts import (
    JOB_ID_LABEL,
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
from inference_service.docker_container import Plan
from inference_service.docker_inspection import RUNNING_STATES, is_ours, status_of
from inference_service.docker_options import Settings
from inference_service.errors import BadInput, ToolError

if TYPE_CHECKING:
    from docker import APIClient

_STOP_SECONDS = 10


class Driver:
    """The platform local-docker; see contracts.Driver for what each method promises."""

    name = PLATFORM
    options: tuple[PlatformOption, ...] = OPTIONS
    needs_host_port = True

    def __init__(self) -> None:
        self._clients: dict[str, APIClient] = {}

    def preflight(self) -> list[Check]:
        """The docker package, the daemon, GPUs in containers, room for images, the registry login."""
        import local_docker_preflight

        return local_docker_preflight.checks()

    def check(self, spec: LaunchSpec) -> None:
        """Refuse options, mounts and ports that cannot work. Asks no daemon."""
        settings = options.settings(spec)
        address = _address_without_asking()
        options.check_mounts(spec.mounts, on_this_machine=daemon.is_on_this_machine(address))
        _check_reachable(address, settings)

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        """The container that `start` would create, and the `docker run` command that would make the same."""
        plan = docker_container.plan(spec, options.settings(spec), docker_container.is_tegra(), paths.registry_owner())
        return container.document(plan)

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        """Create the container and start it; a missing image is pulled first, with progress."""
        from inference_service import secrets

        self.check(spec)
        if spec.host_port is None:
            raise BadInput(
                "no_host_port", f"no host port was reserved for {spec.job_id}", "choose one with --host-port"
            )
        settings = options.settings(spec)
        secret_values = secrets.read(spec.secret_env)
        address = daemon.default_address()
        api = self._api(address)
        try:
            plan = docker_container.plan(spec, settings, _is_tegra(api, address), paths.registry_owner())
            self._prepare(api, plan, spec, report)
            container_id = self._run(api, plan, secret_values, report)
        except _docker_errors() as error:
            raise _failure(error, address) from error
        return StartedService(
            job_id=spec.job_id,
            network_arch=spec.network_arch,
            platform=self.name,
            host_url=f"http://{daemon.service_host(address, settings.bind_address)}:{spec.host_port}",
            image=spec.image,
            model_path=spec.model_path,
            num_gpus=spec.num_gpus,
            host_port=spec.host_port,
            docker_url=f"http://{spec.job_id}:{spec.container_port}",
            started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            stop_after=plan.labels.get(STOP_AFTER_LABEL),
            extras={DAEMON_FIELD: address, "container_id": container_id, "docker_network": settings.network},
        )

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        """One inspect of the container."""
        try:
            found = self._inspect(entry)
        except ToolError as error:
            return PlatformStatus(State.UNKNOWN, error.message)
        if found is None:
            return PlatformStatus(State.EXITED, f"there is no container {entry.job_id}")
        return status_of(found["State"])

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        """The container's output and errors as they came."""
        import local_docker_logs

        found = self._inspect(entry)
        if found is None:
            raise ToolError(
                "no_log", f"there is no container {entry.job_id}, and so no log", "python scripts/registry.py reconcile"
            )
        api = self._api(_address_of(entry))
        try:
            stream = api.logs(found["Id"], stream=True, follow=follow, tail="all" if tail is None else tail)
            yield from local_docker_logs.lines(stream)
        except _docker_errors() as error:
            raise _failure(error, _address_of(entry)) from error

    def stop(self, entry: ServiceEntry) -> None:
        """Stop the container and remove it with its anonymous volumes, whatever its state; the network stays."""
        found = self._inspect(entry)
        if found is None:
            return
        address = _address_of(entry)
        try:
            _remove(self._api(address), found["Id"])
            if self._inspect(entry) is not None:
                raise ToolError(
                    "container_not_removed",
                    f"the container {entry.job_id} is still there",
                    f"docker rm --force {entry.job_id}",
                )
        except _docker_errors() as error:
            raise _failure(error, address) from error

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        """The entry as it is: nothing lies between it and this machine that could have died."""
        return entry

    def discover(self) -> list[StartedService]:
        """The containers of our registry that run on the daemon that DOCKER_HOST or the current context names."""
        address = daemon.default_address()
        try:
            api = self._api(address)
            listed = api.containers(filters={"label": [JOB_ID_LABEL, f"{REGISTRY_LABEL}={paths.registry_owner()}"]})
            found = [_inspect_or_none(api, item["Id"]) for item in listed if item["State"] in RUNNING_STATES]
        except _docker_errors() as error:
            raise _failure(error, address) from error
        return [discovered(attributes, address) for attributes in found if attributes is not None]

    def _api(self, address: str) -> APIClient:
        if address not in self._clients:
            self._clients[address] = daemon.connect(address).api
        return self._clients[address]

    def _prepare(self, api: APIClient, plan: Plan, spec: LaunchSpec, report: Report) -> None:
        import local_docker_network
        import local_docker_pull

        local_docker_pull.ensure(api, plan.image, spec.network_arch, report)
        uninterrupted(lambda: local_docker_network.ensure(api, plan.network))

    def _run(self, api: APIClient, plan: Plan, secret_values: Mapping[str, str], report: Report) -> str:
        """The id of the running container; of one that does not get that far nothing is left, interrupted or not."""
        from docker.errors import APIError

        from inference_service import docker_errors

        report(Progress("starting", f"container {plan.name}"))
        created: list[str] = []
        try:
            uninterrupted(lambda: created.append(_create(api, plan, secret_values)))
            uninterrupted(lambda: api.start(created[0]))
        except APIError as error:
            uninterrupted(lambda: _discard(api, created))
            if not created and error.status_code == 409:
                raise _name_taken(api, plan) from error
            raise docker_errors.start_error(docker_errors.explanation(error), plan) from error
        except BaseException:
            uninterrupted(lambda: _discard(api, created or _created_without_answer(api, plan.name)))
            raise
        return created[0]

    def _inspect(self, entry: ServiceEntry) -> dict[str, Any] | None:
        """Docker's description of the entry's container, None when there is none that is ours."""
        address = _address_of(entry)
        try:
            found = _inspect_or_none(self._api(address), entry.job_id)
        except _docker_errors() as error:
            raise _failure(error, address) from error
        return found if found is not None and is_ours(found, entry.job_id) else None


def _create(api: APIClient, plan: Plan, secret_values: Mapping[str, str]) -> str:
    host_config = api.create_host_config(**container.host_config_arguments(plan))
    arguments = container.create_arguments(plan, secret_values)
    created: dict[str, Any] = api.create_container(**arguments, host_config=host_config)
    return str(created["Id"])


def _discard(api: APIClient, container_ids: list[str]) -> None:
    for container_id in container_ids:
        _remove(api, container_id, stop_first=False)


def _created_without_answer(api: APIClient, job_id: str) -> list[str]:
    # A create that the daemon did not answer in time may have happened: then the container is ours and never ran.
    found = _inspect_or_none(api, job_id)
    return [found["Id"]] if found and is_ours(found, job_id) and found["State"]["Status"] == "created" else []


def _remove(api: APIClient, container_id: str, stop_first: bool = True) -> None:
    from docker.errors import APIError, NotFound

    try:
        if stop_first:
            api.stop(container_id, timeout=_STOP_SECONDS)
    except NotFound:
        return
    except APIError:
        pass  # what does not stop is killed by the removal
    try:
        api.remove_container(container_id, v=True, force=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:
            raise
        # Another process is removing it right now.
        with contextlib.suppress(NotFound):
            api.wait(container_id, condition="removed")


def _name_taken(api: APIClient, plan: Plan) -> ToolError:
    from inference_service import docker_errors

    found = _inspect_or_none(api, plan.name) or {"State": {"Status": "gone again"}, "Config": {}}
    label = (found["Config"].get("Labels") or {}).get(JOB_ID_LABEL)
    return docker_errors.name_taken(plan, found["State"]["Status"], label)


def _inspect_or_none(api: APIClient, name_or_id: str) -> dict[str, Any] | None:
    from docker.errors import NotFound

    try:
        attributes: dict[str, Any] = api.inspect_container(name_or_id)
    except NotFound:
        return None
    return attributes


def _docker_errors() -> tuple[type[Exception], ...]:
    try:
        from docker.errors import DockerException
        from requests.exceptions import RequestException
    except ImportError:
        # The package is missing: what is being raised is the error that says so.
        return ()
    return (DockerException, RequestException)


def _failure(error: Exception, address: str) -> ToolError:
    """The daemon answered with an error that nobody expected, or did not answer at all."""
    from docker.errors import APIError

    from inference_service.docker_errors import explanation

    if isinstance(error, APIError):
        return ToolError("docker_error", f"Docker says: {explanation(error)}", "see python scripts/preflight.py")
    return daemon.connection_error(error, address)


def _address_of(entry: ServiceEntry) -> str:
    return str(entry.extras.get(DAEMON_FIELD) or daemon.default_address())


def _address_without_asking() -> str:
    try:
        return daemon.default_address()
    except ToolError:
        # Without the package the context is not known; a dry run shall work all the same, and `start` will refuse.
        return daemon.LOCAL_SOCKET


def _check_reachable(address: str, settings: Settings) -> None:
    if daemon.is_on_this_machine(address) or not settings.published_to_this_machine_only:
        return
    raise BadInput(
        "port_unreachable",
        f"the Docker daemon is on another machine ({address}): a port published on its {settings.bind_address}"
        " cannot be reached from here",
        "add --bind-address 0.0.0.0 if only trusted machines reach that machine: everyone who does can use the service",
    )


def _is_tegra(api: APIClient, address: str) -> bool:
    if daemon.is_on_this_machine(address) and docker_container.is_tegra():
        return True
    return docker_container.is_tegra(str(api.info().get("KernelVersion", "")))

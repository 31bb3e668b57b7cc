"""Services as containers on a rented instance of NVIDIA Brev, through its command line (facts: brev; seed 4.2).

An instance bills while it runs: none is created or started without the user's word, one that was created for a start
that fails is deleted with it, and a service that is stopped takes its instance along only when the user says so
(`stop_service.py` asks, and puts the answer into the entry's extras).
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import brev_cli as cli
import brev_container as container
import brev_instances as instances
import brev_options as options
import brev_tunnel as tunnel
from brev_instances import Chosen

from inference_service import docker_container, output, paths, secrets
from inference_service.contracts import (
    JOB_ID_LABEL,
    STOP_AFTER_LABEL,
    Check,
    LaunchSpec,
    PlatformOption,
    PlatformStatus,
    Report,
    ServiceEntry,
    StartedService,
    State,
)
from inference_service.docker_inspection import discovered, is_ours, published, status_of
from inference_service.errors import BadInput, DecisionNeeded, PortTaken, ToolError
from inference_service.interruption import held_back

PLATFORM = "brev"
NAME_TAKEN = ("job_id_in_use", "container_name_taken")
CREATED, DELETE = "created_instance", "delete_instance"

# Whether an instance has other services on it may only be asked when none of them is just being removed.
_stopping = threading.Lock()


class Driver:
    """The platform brev; see contracts.Driver for what each method promises."""

    name = PLATFORM
    options: tuple[PlatformOption, ...] = options.OPTIONS
    # The same number is the instance's port and, where a tunnel is needed, this machine's: free on both.
    needs_host_port = True

    def preflight(self) -> list[Check]:
        """The brev command, its login, ssh, and the instances there are."""
        import brev_preflight

        return brev_preflight.checks()

    def check(self, spec: LaunchSpec) -> None:
        """Refuse options that mean nothing. Asks nobody."""
        options.settings(spec)

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        """The commands that `start` would run: here for the instance, on the instance for the container."""
        settings = options.settings(spec)
        plan = docker_container.plan(spec, settings.docker, tegra=False, owner=paths.shared_registry_owner())
        name = settings.instance or instances.name_for(spec.job_id)
        create = ["brev", "create", name, *settings.create_arguments, "--detached"]
        port = "" if plan.host_port is None else plan.host_port
        return {
            "instance": name if settings.instance or settings.create else None,
            "create": shlex.join(create) if settings.create else None,
            "on_the_instance": [
                f"docker pull {shlex.quote(plan.image)}",
                container.network_script(plan.network),
                container.run_script(plan),
            ],
            "secret_env": list(plan.secret_env),
            "labels": dict(plan.labels),
            "reach": settings.reach,
            "tunnel": None if settings.reach == "direct" else f"brev port-forward {name} --port {port}:{port}",
        }

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        """Get the instance, its image, the container, and the way to it."""
        import brev_reaching

        settings = options.settings(spec)
        if spec.host_port is None:
            raise BadInput(
                "no_host_port", f"no host port was reserved for {spec.job_id}", "choose one with --host-port"
            )
        secret_values = secrets.read(spec.secret_env)
        container.env_file(secret_values)
        plan = docker_container.plan(spec, settings.docker, tegra=False, owner=paths.shared_registry_owner())
        made: list[Chosen] = []
        try:
            with held_back():
                chosen = instances.choose(spec, settings, report)
                made.append(chosen)
            name = chosen.instance.name
            if not instances.wait_until_up(chosen.instance, spec, settings.timeout, report):
                container.pull(name, spec.image, spec.network_arch, report)
            with held_back():
                container_id = container.run(name, plan, secret_values, report)
            url, way = brev_reaching.find_way(spec.job_id, name, spec.host_port, settings.reach, report)
        except (PortTaken, DecisionNeeded):
            # Nothing was made; or the next attempt, on another port, uses the same instance.
            raise
        except BaseException as error:
            if isinstance(error, ToolError) and error.type in NAME_TAKEN:
                raise  # what has the name is another start's
            with held_back(deliver=False):
                _undo(spec.job_id, made[0] if made else None, error)
            raise
        return StartedService(
            job_id=spec.job_id,
            network_arch=spec.network_arch,
            platform=self.name,
            host_url=url,
            image=spec.image,
            model_path=spec.model_path,
            num_gpus=spec.num_gpus,
            host_port=spec.host_port,
            docker_url=f"http://{spec.job_id}:{spec.container_port}",
            started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            stop_after=plan.labels.get(STOP_AFTER_LABEL),
            extras={
                **_instance_fields(chosen),
                "container_id": container_id,
                "docker_network": settings.docker.network,
                **way,
            },
        )

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        """One look at the container, through ssh; brev is asked only when that says nothing."""
        name = instances.of_entry(entry)
        try:
            found = container.inspect(name, entry.job_id)
        except ToolError as error:
            return self._state_of_instance(name, entry, error)
        if found is None or not is_ours(found, entry.job_id):
            return PlatformStatus(State.EXITED, f"there is no container {entry.job_id} on {name}")
        return status_of(found["State"])

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        """The container's output and errors as they came."""
        name = instances.of_entry(entry)
        found = container.inspect(name, entry.job_id)
        if found is None or not is_ours(found, entry.job_id):
            raise ToolError(
                "no_log",
                f"there is no container {entry.job_id} on {name}, and so no log",
                "python scripts/registry.py reconcile",
            )
        yield from container.logs(name, entry.job_id, tail, follow)

    def stop(self, entry: ServiceEntry) -> None:
        """Remove the container and the tunnel; the instance too, when it was created for this service or is to go.

        `delete_instance` in the entry's extras is the user's word on it; without it only an instance that was created
        for this very service is deleted. One that has other services on it stays.
        """
        tunnel.end(entry.job_id)
        with _stopping:
            self._stop(entry, instances.of_entry(entry))

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        """The entry with the way to it that works now."""
        import brev_reaching

        return brev_reaching.reached(entry, report)

    def discover(self) -> list[StartedService]:
        """The containers of our registry on the instances that run. One that cannot be reached tells of none."""
        found: list[StartedService] = []
        for instance in cli.instances().values():
            if instance.running:
                try:
                    described = container.ours(instance.name)
                except ToolError as error:
                    output.note(f"brev: {error.message}")
                    continue
                found += [_discovered(attributes, instance) for attributes in described]
        return found

    def _stop(self, entry: ServiceEntry, name: str) -> None:
        found = cli.find(name)
        if found is None or instances.gone(found):
            return
        its_own = name == instances.name_for(entry.job_id)
        to_delete = entry.extras.get(DELETE, its_own) is True
        if found.running:
            try:
                container.remove(name, entry.job_id)
                to_delete = to_delete and not container.services_on(name)
            except ToolError:
                # One that takes no commands yet was created a moment ago for this service, and nobody else is on it.
                if not (its_own and to_delete and entry.status == "starting"):
                    raise
        if to_delete:
            output.note(f"deleting the Brev instance {name}")
            instances.delete(name)

    def _state_of_instance(self, name: str, entry: ServiceEntry, error: ToolError) -> PlatformStatus:
        try:
            found = cli.find(name)
        except ToolError as problem:
            return PlatformStatus(State.UNKNOWN, problem.message)
        if found is None or instances.gone(found):
            return PlatformStatus(State.EXITED, f"the instance {name} is gone")
        if instances.coming_up(found):
            return PlatformStatus(State.PENDING, f"the instance {name} is {found.status}")
        if found.running:
            if entry.status == "starting" and name == instances.name_for(entry.job_id):
                return PlatformStatus(State.PENDING, f"the instance {name} runs, and takes no commands yet")
            return PlatformStatus(State.UNKNOWN, error.message)
        state = State.FAILED if found.status in ("FAILURE", "UNHEALTHY") else State.EXITED
        return PlatformStatus(state, f"the instance {name} is {found.status}")


def _undo(job_id: str, chosen: Chosen | None, error: BaseException) -> None:
    """Leave nothing of a start that failed; the error says what is left all the same."""
    name = chosen.instance.name if chosen else instances.name_for(job_id)
    if chosen and chosen.started:
        _add(error, f"the instance {name} was started for it and runs on", f"brev stop {name}")
    entry = ServiceEntry(job_id, "", PLATFORM, "", "starting", extras={"instance": name})
    try:
        Driver().stop(entry)
    except ToolError as problem:
        if problem.type in ("brev_missing", "brev_logged_out") and error is not problem:
            return
        _add(error, problem.message, problem.fix)


def _add(error: BaseException, left: str, fix: str) -> None:
    if isinstance(error, ToolError):
        error.message = f"{error.message}; {left}"
        error.fix = f"{error.fix}; {fix}" if error.fix else fix
    else:
        error.args = (f"{error.args[0] if error.args else 'interrupted'}; {left}", fix)


def _instance_fields(chosen: Chosen) -> dict[str, Any]:
    instance = chosen.instance
    fields: dict[str, Any] = {
        "instance": instance.name,
        "instance_id": instance.id,
        "instance_type": instance.instance_type,
        "gpu": instance.gpu,
        CREATED: instances.created_by_us(instance.name),
    }
    return fields | ({"instance_created_at": chosen.created_at} if chosen.created_at else {})


def _discovered(attributes: Mapping[str, Any], instance: cli.Instance) -> StartedService:
    import brev_reaching

    job_id = attributes["Config"]["Labels"][JOB_ID_LABEL]
    port, published_to, _ = published(attributes)
    url, way = brev_reaching.adopted(job_id, instance.name, port, published_to) if port else ("", {})
    return discovered(attributes, PLATFORM, url, {**_instance_fields(Chosen(instance)), **way})

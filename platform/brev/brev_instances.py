"""Which instance a service gets: found, reused or created, and nothing that bills without the user's word.

An instance that we create is named for the service that it is created for, so that whatever becomes of us, it is known
whose it is.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import brev_cli as cli
from brev_cli import Instance
from brev_options import NEW_INSTANCE, Settings

from inference_service.contracts import LaunchSpec, Progress, Report, ServiceEntry
from inference_service.errors import BadInput, DecisionNeeded, Need, ToolError

_CREATED = re.compile(r"tao-inf-[0-9a-f]{8}")
_COMING_UP = ("STARTING", "DEPLOYING", "CREATED", "BUILDING", "PENDING", "RUNNING")
_GOING_AWAY = ("DELETING", "DELETED")
_LOOK_EVERY_SECONDS = 2.0
_PROBE_SECONDS = 120.0
_DELETE_SECONDS = 60.0
_CREATE_TIMEOUT = "600"
_IMAGE = "image-is-there"
_IMAGE_PROBE = f"docker image inspect --format '{_IMAGE} {{{{.Id}}}}'"
_PROBE = "docker version --format '{{.Server.Version}}' || exit 1; nvidia-smi -L 2>/dev/null"


@dataclass(frozen=True)
class Chosen:
    """The instance for a service. `created_at` (ISO 8601, UTC) is None for one that was there before; `started`: it
    was stopped, and runs again for this service."""

    instance: Instance
    created_at: str | None = None
    started: bool = False


def name_for(job_id: str) -> str:
    """The name of the instance that is created for this service."""
    return f"tao-inf-{job_id[:8]}"


def created_by_us(name: str) -> bool:
    """Whether an instance was created for a service."""
    return _CREATED.fullmatch(name) is not None


def of_entry(entry: ServiceEntry) -> str:
    """The instance of a registered service; of one whose start died, where its options would have sent it."""
    wanted = entry.extras.get("platform_options")
    options: Mapping[str, object] = wanted if isinstance(wanted, Mapping) else {}
    named = entry.extras.get("instance") or options.get("instance")
    return name_for(entry.job_id) if named in (None, "", NEW_INSTANCE) else str(named)


def choose(spec: LaunchSpec, settings: Settings, report: Report) -> Chosen:
    """The instance to use: it exists, and it bills because the user wants it to. It may not be up yet.

    Raises:
        DecisionNeeded: the user has to name one, or allow that one is created or started.
        BadInput: the one that was named does not exist or cannot be used.
    """
    known = cli.instances()
    if settings.instance is not None:
        return _named(settings.instance, known, settings, report)
    ours = known.get(name_for(spec.job_id))
    if ours is not None:
        return Chosen(ours, _now())
    if settings.create is None:
        raise DecisionNeeded([_question(known, spec)])
    if not settings.create:
        raise BadInput(
            "no_instance",
            "no instance is named, and none may be created",
            f"--instance NAME with one of: {', '.join(known) or 'none there'}; or --create-instance yes",
        )
    return Chosen(_create(spec, settings, report), _now())


def wait_until_up(instance: Instance, spec: LaunchSpec, timeout: float, report: Report) -> bool:
    """Wait until commands can be run on the instance and Docker answers there; whether it has the service's image.

    RUNNING comes before sshd does.

    Raises:
        ToolError: it failed or is going away, it was not up within `timeout` seconds, or it has no Docker or too few
            GPUs.
    """
    deadline = time.monotonic() + timeout
    last = instance.status
    probe = f"{_PROBE}; {_IMAGE_PROBE} {shlex.quote(spec.image)} 2>/dev/null || true"
    while True:
        if last == "RUNNING":
            report(Progress("instance", f"{instance.name} is RUNNING, waiting until commands can be run on it"))
            try:
                done = cli.execute(
                    instance.name,
                    probe,
                    timeout=min(_PROBE_SECONDS, max(5.0, deadline - time.monotonic())),
                    by_brev=True,
                )
            except ToolError as error:
                last = error.message
            else:
                _require(instance, done, spec.num_gpus)
                return any(line.startswith(f"{_IMAGE} ") for line in done.output.splitlines())
        elif last not in _COMING_UP:
            raise ToolError("instance_failed", f"the instance {instance.name} is {last}", "brev ls")
        else:
            report(Progress("instance", f"{instance.name} is {last}"))
        if time.monotonic() > deadline:
            raise ToolError(
                "instance_not_up",
                f"the instance {instance.name} was not up within {timeout:g} s: {last}",
                f"brev ls; or allow it more: --instance-timeout {2 * timeout:g}",
            )
        time.sleep(_LOOK_EVERY_SECONDS)
        found = cli.find(instance.name)
        last = found.status if found else "gone"


def delete(name: str) -> None:
    """Delete an instance; one that is gone already is success.

    Raises:
        ToolError: it could not be deleted, and so goes on billing.
    """
    try:
        cli.command("delete", name)
        deadline = time.monotonic() + _DELETE_SECONDS
        while (found := cli.find(name)) is not None and found.status not in _GOING_AWAY:
            if time.monotonic() > deadline:
                raise ToolError("instance_not_deleted", f"{name} is still {found.status}", f"brev delete {name}")
            time.sleep(_LOOK_EVERY_SECONDS)
    except ToolError as error:
        if error.type != "instance_not_deleted" and cli.find(name) is None:
            return
        raise ToolError(
            "instance_not_deleted",
            f"the instance {name} could not be deleted and goes on billing: {error.message}",
            f"brev delete {name}; then look: brev ls",
        ) from error


def gone(instance: Instance | None) -> bool:
    """Whether there is no such instance any more."""
    return instance is None or instance.status in _GOING_AWAY


def coming_up(instance: Instance) -> bool:
    """Whether it is being created or started."""
    return instance.status in _COMING_UP and not instance.running


def _named(name_or_id: str, known: Mapping[str, Instance], settings: Settings, report: Report) -> Chosen:
    found = next((item for item in known.values() if name_or_id in (item.name, item.id)), None)
    if found is None or gone(found):
        raise BadInput(
            "no_such_instance",
            f"there is no instance {name_or_id!r}",
            f"choose one of: {', '.join(known) or 'none there'}; or --create-instance yes",
        )
    if found.status in _COMING_UP:
        return Chosen(found)
    if found.status not in ("STOPPED", "STOPPING"):
        raise BadInput("instance_unusable", f"the instance {found.name} is {found.status}", "brev ls; name another one")
    if settings.start_stopped is None:
        question = f"{found.name} ({_described(found)}) is {found.status}. Start it? It bills while it runs."
        raise DecisionNeeded([_yes_or_no("start-instance", question)])
    if not settings.start_stopped:
        raise BadInput("instance_stopped", f"the instance {found.name} is {found.status}", "--start-instance yes")
    report(Progress("instance", f"starting {found.name}"))
    cli.command("start", found.name, "--detached")
    return Chosen(replace(found, status="STARTING"), started=True)


def _question(known: Mapping[str, Instance], spec: LaunchSpec) -> Need:
    usable = [item for item in known.values() if item.status in _COMING_UP]
    if not usable:
        gpus = f" with {spec.num_gpus} GPU(s)" if spec.num_gpus else ""
        question = f"There is no running Brev instance. Create one{gpus}? It bills until it is deleted."
        return _yes_or_no("create-instance", question)
    options = [
        {"instance": item.name, "status": item.status, "instance_type": item.instance_type, "gpu": item.gpu}
        for item in usable
    ]
    options.append({"instance": NEW_INSTANCE, "status": "would be created; it bills until it is deleted"})
    return Need(
        "instance", "On which Brev instance?", "--instance NAME, or --create-instance yes for a new one", options
    )


def _yes_or_no(name: str, question: str) -> Need:
    return Need(name, question, f"--{name} yes", options=[{name: "yes"}, {name: "no"}])


def _create(spec: LaunchSpec, settings: Settings, report: Report) -> Instance:
    name = name_for(spec.job_id)
    report(Progress("instance", f"creating {name}; it bills until it is deleted"))
    cli.command("create", name, *settings.create_arguments, "--detached", "--timeout", _CREATE_TIMEOUT)
    found = cli.find(name)
    if found is None:
        raise ToolError("instance_not_created", f"brev created no instance {name}", "brev ls; brev search")
    # Its address is written into the ssh configuration.
    cli.command("refresh")
    return found


def _require(instance: Instance, done: cli.Done, num_gpus: int) -> None:
    if done.status:
        raise ToolError(
            "docker_missing_on_instance",
            f"Docker does not answer on the instance {instance.name}: {done.errors or done.output}",
            f"brev exec {instance.name} 'docker info'; use an instance with Docker",
        )
    gpus = sum(line.startswith("GPU ") for line in done.output.splitlines())
    if gpus and gpus < num_gpus:
        raise ToolError(
            "too_few_gpus",
            f"the instance {instance.name} has {gpus} GPU(s), {num_gpus} are needed",
            f"--num-gpus {gpus}, or an instance with more: brev search",
        )


def _described(instance: Instance) -> str:
    return ", ".join(part for part in (instance.instance_type, instance.gpu) if part) or "type unknown"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

"""The service's container on an instance, by the `docker` command there.

Secrets reach it through standard input and a pipe: no file of them is ever on the instance, and no argument of any
process, here or there, holds one.
"""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import brev_cli as cli

from inference_service import docker_container, docker_errors, docker_images, paths, references
from inference_service.contracts import JOB_ID_LABEL, REGISTRY_LABEL, Progress, Report
from inference_service.docker_container import Plan
from inference_service.docker_inspection import is_ours
from inference_service.errors import BadInput, ToolError

_PULL_SECONDS = 2 * 3600.0
_REPORT_EVERY_SECONDS = 1.0
_STOP_SECONDS = 10
_START = "tao-start"
"""A label that tells which start made the container: a name alone may be another's."""


def env_file(values: Mapping[str, str]) -> bytes:
    """These variables as `docker run --env-file` reads them.

    Raises:
        BadInput: a value has a line end, which that format cannot hold; the message has its name only.
    """
    for name, value in values.items():
        if "\n" in value or "\r" in value:
            raise BadInput("secret_with_line_end", f"{name} has a line end in it", f"export {name} without it")
    return "".join(f"{name}={value}\n" for name, value in values.items()).encode(errors="surrogateescape")


def run_script(plan: Plan) -> str:
    """The shell script that makes and starts the container; its secrets come on standard input."""
    words = docker_container.docker_run(replace(plan, secret_env=()))
    if not plan.secret_env:
        return shlex.join(words)
    # sshd may give a socket for standard input, which cannot be opened by a name: hence the pipe.
    return f"cat | {shlex.join([*words[:2], '--env-file', '/dev/stdin', *words[2:]])}"


def network_script(network: str) -> str:
    """The shell script that makes the network unless it is there."""
    name = shlex.quote(network)
    return f"docker network inspect {name} >/dev/null 2>&1 || docker network create {name}"


def pull(instance: str, image: str, network_arch: str, report: Report) -> None:
    """Get the image onto the instance: a step of its own, with progress.

    Raises:
        ToolError: it cannot be pulled.
    """
    quoted = shlex.quote(image)
    registry = docker_images.registry_of(image)
    if docker_images.build_command(image, network_arch, references.load()):
        raise ToolError(
            "image_not_built",
            f"the instance {instance} does not have {image}, which no registry serves",
            f"docker save {quoted} | ssh {instance} docker load",
        )
    report(Progress("pulling", f"{image} from {registry}"))
    lines = cli.follow(instance, f"docker pull {quoted}", timeout=_PULL_SECONDS, by_brev=True)
    status, errors = _follow_pull(lines, image, report)
    if status:
        raise _on_the_instance(docker_errors.pull_error(errors or "docker pull failed", image, registry), instance)
    report(Progress("pulling", f"{image}: done", 1.0))


def run(instance: str, plan: Plan, secret_values: Mapping[str, str], report: Report) -> str:
    """Start the container; its id. Of one that does not start nothing is left.

    Raises:
        ToolError: Docker refuses it. PortTaken: the instance's port is in use.
    """
    report(Progress("starting", f"container {plan.name} on {instance}"))
    mark = uuid.uuid4().hex
    plan = replace(plan, labels={**plan.labels, _START: mark})
    feed = env_file(secret_values) if plan.secret_env else None
    script = f"( {network_script(plan.network)} ) >/dev/null\n{run_script(plan)}"
    done = cli.execute(instance, script, feed, by_brev=feed is None)
    if done.status == 0:
        return done.output.split()[-1]
    found = inspect(instance, plan.name)
    if found is not None and _label(found, _START) != mark:
        raise docker_errors.name_taken(plan, found["State"]["Status"], _label(found, JOB_ID_LABEL))
    if found is not None and found["State"]["Status"] == "running":
        # brev ran it a second time, because the connection broke after the first.
        return str(found["Id"])
    remove(instance, plan.name)
    raise _on_the_instance(docker_errors.start_error(done.errors or done.output, plan), instance)


def inspect(instance: str, job_id: str) -> dict[str, Any] | None:
    """Docker's description of the container of that name, None when there is none.

    Raises:
        ToolError: the instance cannot be asked.
    """
    return next(iter(_inspected(instance, [job_id])), None)


def ours(instance: str) -> list[dict[str, Any]]:
    """What runs on the instance for our registry, as Docker describes it."""
    label = shlex.quote(f"label={REGISTRY_LABEL}={paths.shared_registry_owner()}")
    return _inspected(instance, _listed(instance, f"docker ps --quiet --filter {label}"))


def services_on(instance: str) -> list[str]:
    """The containers of anybody's services that are on the instance, running or not."""
    return _listed(instance, f"docker ps --all --quiet --filter label={JOB_ID_LABEL}")


def remove(instance: str, job_id: str) -> None:
    """Stop the container and remove it with its anonymous volumes. One that is not there, or not ours, stays so.

    Raises:
        ToolError: it is still there, or the instance cannot be asked.
    """
    found = inspect(instance, job_id)
    if found is None or not is_ours(found, job_id):
        return
    name = shlex.quote(found["Id"])
    done = cli.execute(
        instance, f"docker stop --time {_STOP_SECONDS} {name} >/dev/null 2>&1; docker rm --force --volumes {name}"
    )
    if done.status and inspect(instance, job_id) is not None:
        raise ToolError(
            "container_not_removed",
            f"the container {job_id} is still on {instance}: {done.errors}",
            f"brev exec {instance} 'docker rm --force {job_id}'",
        )


def logs(instance: str, job_id: str, tail: int | None, follow: bool) -> Iterator[str]:
    """The container's output and errors, line by line."""
    options = f"--tail {'all' if tail is None else int(tail)}{' --follow' if follow else ''}"
    timeout = None if follow else 120.0
    yield from cli.follow(instance, f"docker logs {options} {shlex.quote(job_id)} 2>&1", timeout=timeout)


class PullLines:
    """How far `docker pull` is, by the lines that it prints without a terminal: one for each layer's steps."""

    def __init__(self) -> None:
        self._layers: dict[str, float] = {}

    def take(self, line: str) -> None:
        """Count one line."""
        layer, _, said = line.partition(": ")
        if said == "Pulling fs layer" or said.startswith(("Waiting", "Downloading")):
            self._layers.setdefault(layer, 0.0)
        elif said in ("Verifying Checksum", "Download complete"):
            self._layers[layer] = 0.5
        elif said in ("Pull complete", "Already exists"):
            self._layers[layer] = 1.0

    @property
    def fraction(self) -> float | None:
        """0 to 1, each layer counting the same; None until one is known."""
        return sum(self._layers.values()) / len(self._layers) if self._layers else None


def _follow_pull(pull: Any, image: str, report: Report) -> tuple[int, str]:
    progress, last = PullLines(), 0.0
    while True:
        try:
            progress.take(next(pull))
        except StopIteration as end:
            status, errors = end.value
            return status, errors
        fraction = progress.fraction
        if fraction is not None and time.monotonic() - last >= _REPORT_EVERY_SECONDS:
            last = time.monotonic()
            report(Progress("pulling", f"{image}: {int(fraction * 10) * 10} %", fraction))


def _listed(instance: str, script: str) -> list[str]:
    done = cli.execute(instance, script)
    if done.status:
        raise _docker_failed(instance, done)
    return done.output.split()


def _inspected(instance: str, names: list[str]) -> list[dict[str, Any]]:
    if not names:
        return []
    # One that has gone between the listing and this makes docker fail, and it still prints the others.
    done = cli.execute(instance, f"docker container inspect {shlex.join(names)}")
    try:
        found = json.loads(done.output or "[]")
    except ValueError:
        raise _docker_failed(instance, done) from None
    if done.status and not found and "no such container" not in done.errors.lower():
        raise _docker_failed(instance, done)
    return [item for item in found if isinstance(item, dict)]


def _docker_failed(instance: str, done: cli.Done) -> ToolError:
    return ToolError(
        "docker_error",
        f"Docker on {instance} says: {done.errors or done.output}",
        f"brev exec {instance} 'docker info'",
    )


def _on_the_instance(error: ToolError, instance: str) -> ToolError:
    """The error with its mend where it has to be done: on the instance, not here."""
    if error.type in ("pull_unauthorized", "pull_rate_limited"):
        error.fix = error.fix.replace("docker login", f"ssh {instance} docker login").replace("'$", "'\\$")
    elif error.fix and error.type != "port_taken":
        error.fix = f"on the instance (brev shell {instance}): {error.fix}"
    return error


def _label(attributes: Mapping[str, Any], name: str) -> str | None:
    return (attributes["Config"].get("Labels") or {}).get(name)

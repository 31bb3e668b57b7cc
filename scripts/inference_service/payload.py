"""From what the user wants to a LaunchSpec: every rule of seed 1, 3 and 4.1 is kept here, before anything starts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference_service import (
    container_env,
    images,
    inner_command,
    model_path,
    mounts,
    output,
    paths,
    secrets,
    startup_specs,
)
from inference_service.contracts import LaunchSpec
from inference_service.errors import BadInput, Need
from inference_service.model_path import ModelPath
from inference_service.references import Arch, PlatformFacts, References

_MOST_HOURS = 87_600  # Ten years: whoever means longer means for ever.


@dataclass(frozen=True)
class Wanted:
    """What a user asks for, as typed: `specs`, `env` and `mounts` are the texts of their options."""

    network_arch: str
    model_path: str
    platform: str
    num_gpus: int | None = None
    specs: Sequence[str] = ()
    env: Sequence[str] = ()
    mounts: Sequence[str] = ()
    host_port: int | None = None
    platform_options: Mapping[str, Any] = field(default_factory=dict)
    max_hours: float | None = None


def build(wanted: Wanted, refs: References, environ: Mapping[str, str] = os.environ) -> LaunchSpec:
    """The launch spec of a new service, with a fresh job_id.

    Its secrets are those the user names and those of the arch that are set in `environ` or that it cannot do without.

    Raises:
        BadInput: something that was asked for cannot be; nothing was changed.
        DecisionNeeded: the arch needs a registered model key, and only the user knows it.
    """
    arch, facts = refs.arch(wanted.network_arch), platform_facts(wanted.platform, refs)
    model = model_path.read(wanted.model_path, arch, refs)
    specs = _specs(wanted.specs, arch, model)
    env, named_secrets = container_env.parse(wanted.env, arch, refs.environment, environ)
    job_id = str(uuid.uuid4())
    ours = container_env.set_by_us(refs.environment, facts, job_id)
    spec = LaunchSpec(
        job_id=job_id,
        network_arch=arch.network_arch,
        platform=wanted.platform,
        model_path=model.written,
        image=images.resolve(arch.network_arch, refs, environ).image,
        command=inner_command.build(arch, job_id, model, specs, ours, refs.container_port),
        env={**ours, **env},
        secret_env=_secret_names(arch, named_secrets, environ),
        num_gpus=arch.launch.default_gpus if wanted.num_gpus is None else wanted.num_gpus,
        container_port=refs.container_port,
        mounts=mounts.parse(wanted.mounts),
        host_port=wanted.host_port,
        platform_options=wanted.platform_options,
        specs=specs,
        max_hours=wanted.max_hours,
    )
    check(spec, refs, environ)
    if facts.containers and model.is_file_path and facts.runs_on_this_machine(environ):
        spec = replace(spec, mounts=(*spec.mounts, *mounts.for_model(model.written, spec.mounts)))
    return spec


def check(spec: LaunchSpec, refs: References, environ: Mapping[str, str] = os.environ) -> None:
    """Hold a launch spec, wherever it comes from, against every rule that `build` keeps.

    Raises:
        BadInput: it breaks one; the message says which.
    """
    arch, facts = refs.arch(spec.network_arch), platform_facts(spec.platform, refs)
    here = facts.runs_on_this_machine(environ)
    _check_job_id(spec.job_id)
    _check_num_gpus(spec.num_gpus, arch)
    _check_port(spec, refs)
    _check_max_hours(spec.max_hours)
    _check_env(spec, arch, facts, refs)
    images.check(spec.image, "image")
    mounts.check(spec.mounts, facts.containers, here)
    model = model_path.read(spec.model_path, arch, refs)
    if model.is_file_path and here:
        _check_model_on_this_machine(spec, arch, facts)
    _check_command(spec, arch, model, facts, refs)
    secrets.refuse_values(spec.to_json(), environ)


def model_is_in_the_image_alone(spec: LaunchSpec, refs: References, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the model path is one of the container's, and nothing of this machine is there: a typing error, maybe."""
    model = model_path.read(spec.model_path, refs.arch(spec.network_arch), refs)
    here = platform_facts(spec.platform, refs).runs_on_this_machine(environ)
    return (
        model.is_file_path
        and here
        and mounts.host_path(spec.model_path, spec.mounts) is None
        and not paths.exists(model.text)
    )


def platform_facts(platform: str, refs: References) -> PlatformFacts:
    """What service.yaml says of that platform.

    Raises:
        BadInput: it says nothing of it; the message lists the platforms there are.
    """
    if platform not in refs.platforms:
        raise BadInput(
            "unknown_platform", f"unknown platform {platform!r}", f"choose one of: {', '.join(refs.platforms)}"
        )
    return refs.platforms[platform]


def _specs(assignments: Sequence[str], arch: Arch, model: ModelPath) -> dict[str, Any]:
    specs = {**startup_specs.defaults(arch), **startup_specs.parse(assignments, arch)}
    key = arch.launch.registered_key
    if key and model.use == "registered_key" and key.spec not in specs:
        need = Need(
            name=key.spec,
            question=f"{model.written}: {key.question} For example: {', '.join(key.examples)}",
            answer_with=f"--spec {key.spec}=KEY",
            type="string",
            required=True,
        )
        specs |= startup_specs.parse([f"{key.spec}={output.decide([need])[key.spec]}"], arch)
    return specs


def _secret_names(arch: Arch, named: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    launch = arch.launch
    usual = [name for name in launch.secret_env if environ.get(name) or name in launch.required_secret_env]
    return tuple(dict.fromkeys([*usual, *named]))


def _check_job_id(job_id: str) -> None:
    try:
        canonical = str(uuid.UUID(job_id)) == job_id
    except ValueError:
        canonical = False
    if not canonical:
        raise BadInput("bad_job_id", f"job_id {job_id!r} is not a UUID", "build the launch spec with build_payload.py")


def _check_num_gpus(num_gpus: int, arch: Arch) -> None:
    if num_gpus < arch.launch.min_gpus:
        raise BadInput(
            "bad_num_gpus",
            f"num_gpus {num_gpus} is refused: {arch.network_arch} needs at least {arch.launch.min_gpus}",
            f"use --num-gpus {arch.launch.default_gpus} or more",
        )


def _check_port(spec: LaunchSpec, refs: References) -> None:
    if spec.host_port is not None and not 1 <= spec.host_port <= 65535:
        raise BadInput("bad_host_port", f"host_port {spec.host_port} is not a port", "use 1 to 65535, or leave it out")
    if spec.container_port != refs.container_port:
        raise BadInput(
            "bad_container_port",
            f"container_port {spec.container_port} is refused: every service listens on {refs.container_port}",
            f"use {refs.container_port}",
        )


def _check_max_hours(hours: float | None) -> None:
    if hours is not None and not 0 < hours <= _MOST_HOURS:
        raise BadInput(
            "bad_max_hours",
            f"max_hours {hours:g} is refused: it must be above 0, and at most {_MOST_HOURS}",
            "give a number of hours, like --max-hours 8, or leave it out",
        )


def _check_env(spec: LaunchSpec, arch: Arch, facts: PlatformFacts, refs: References) -> None:
    ours = container_env.set_by_us(refs.environment, facts, spec.job_id)
    for name, value in ours.items():
        if spec.env.get(name) != value:
            raise BadInput(
                "env_set_by_us", f"env: {name} must be {value!r} here", "build the launch spec with build_payload.py"
            )
    for name in spec.env:
        if name not in ours:
            container_env.check_plain_name(name, refs.environment)
    for name in spec.secret_env:
        container_env.check_secret_name(name, arch, refs.environment)
    missing = [name for name in arch.launch.required_secret_env if name not in spec.secret_env]
    if missing:
        raise BadInput(
            "secret_missing", f"{arch.network_arch} cannot do without {missing[0]}", f"use --env {missing[0]}"
        )


def _check_model_on_this_machine(spec: LaunchSpec, arch: Arch, facts: PlatformFacts) -> None:
    shown = mounts.host_path(spec.model_path, spec.mounts)
    seen = Path(shown or spec.model_path)
    if not paths.exists(str(seen)):
        # A path that no mount shows may be one inside the image, unless there is no image.
        if shown or not facts.containers:
            raise BadInput("model_missing", f"model_path {seen} does not exist on this machine", "correct the path")
        return
    if seen.is_dir() != arch.model_path_is_folder:
        wanted = "a folder" if arch.model_path_is_folder else "a file"
        raise BadInput(
            "wrong_model_path_kind",
            f"model_path {seen} is {'a folder' if seen.is_dir() else 'a file'}, but {arch.network_arch} takes {wanted}",
            f"give the path of {wanted}",
        )


def _check_command(spec: LaunchSpec, arch: Arch, model: ModelPath, facts: PlatformFacts, refs: References) -> None:
    startup_specs.check(spec.specs, arch)
    key = arch.launch.registered_key
    if key and (key.spec in spec.specs) != (model.use == "registered_key"):
        raise BadInput(
            "registered_key_mismatch",
            f"--spec {key.spec} is the registered key of a model that is fetched: it goes with no other model_path, "
            f"and {spec.model_path!r} {'needs' if model.use == 'registered_key' else 'is not'} one",
            f"give --spec {key.spec}=KEY" if model.use == "registered_key" else f"leave --spec {key.spec} out",
        )
    ours = container_env.set_by_us(refs.environment, facts, spec.job_id)
    specs = {**startup_specs.defaults(arch), **spec.specs}
    if spec.command != inner_command.build(arch, spec.job_id, model, specs, ours, refs.container_port):
        raise BadInput(
            "command_changed",
            f"the command is not the one that starts {arch.network_arch} with these values",
            "build the launch spec with build_payload.py and change nothing in it",
        )

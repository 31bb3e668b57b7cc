"""What a user may choose on Brev: the instance, how the service is reached, and what any Docker container takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service import docker_options
from inference_service.contracts import LaunchSpec, PlatformOption
from inference_service.errors import BadInput

NEW_INSTANCE = "new"
"""The answer to "which instance?" that creates one."""

REACH = ("auto", "direct", "tunnel")
_YES_OR_NO = ("yes", "no")
_OF_DOCKER = tuple(option for option in docker_options.OPTIONS if option.name != "gpu-mode")

OPTIONS = (
    PlatformOption("instance", "the instance to use, by name or id (`brev ls`)", metavar="NAME"),
    PlatformOption(
        "create-instance", "create an instance for this service: it bills until it is deleted", choices=_YES_OR_NO
    ),
    PlatformOption("start-instance", "start the instance if it is stopped: it bills again", choices=_YES_OR_NO),
    PlatformOption("gpu-name", "GPU of a new instance, for example L40S (default: Brev's choice)", metavar="GPU"),
    PlatformOption("instance-type", "type of a new instance; several by commas are tried in turn", metavar="TYPE"),
    PlatformOption("cloud-cred-id", "cloud credential of a new instance, on accounts with several", metavar="ID"),
    PlatformOption("workspace-group-id", "workspace group of a new instance, on accounts with several", metavar="ID"),
    PlatformOption("instance-timeout", "seconds for an instance to come up", type=float, default=1200.0, metavar="S"),
    PlatformOption(
        "reach",
        "direct: the port is open on the instance's address, without a password; tunnel: brev port-forward, for this"
        " machine only; auto: direct where the port answers, else the tunnel",
        default="auto",
        choices=REACH,
    ),
    *_OF_DOCKER,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,:_/-]*")


@dataclass(frozen=True)
class Settings:
    """The platform's options of one launch, checked. `timeout` is in seconds; None: the user has not decided."""

    instance: str | None
    create: bool | None
    start_stopped: bool | None
    create_arguments: tuple[str, ...]
    timeout: float
    reach: str
    docker: docker_options.Settings


def settings(spec: LaunchSpec) -> Settings:
    """The checked options of this launch; one that was not given has its default.

    Raises:
        BadInput: an option has no meaning, or two contradict each other.
    """
    given = {option.name: option.default for option in OPTIONS}
    given.update({name.replace("_", "-"): value for name, value in spec.platform_options.items() if value is not None})
    instance, create = given["instance"], _decision(given["create-instance"])
    if instance == NEW_INSTANCE:
        instance, create = None, True
    if instance is not None and not _NAME.fullmatch(instance):
        raise BadInput("bad_instance", f"{instance!r} cannot be an instance's name", "brev ls lists them")
    if instance is not None and create:
        raise BadInput(
            "instance_and_create",
            f"--instance {instance} and --create-instance yes contradict each other: a new instance gets its own name",
            "leave one of them out",
        )
    if given["instance-timeout"] <= 0:
        raise BadInput("bad_timeout", "--instance-timeout is not a number of seconds", "for example 1200")
    return Settings(
        instance=instance,
        create=create,
        start_stopped=_decision(given["start-instance"]),
        create_arguments=_create_arguments(given),
        timeout=float(given["instance-timeout"]),
        reach=str(given["reach"]),
        # The network of this machine's Docker (DOCKER_NETWORK) means nothing over there.
        docker=docker_options.settings(
            {option.name: given[option.name] for option in _OF_DOCKER},
            spec.num_gpus,
            "127.0.0.1" if given["reach"] == "tunnel" else "0.0.0.0",  # noqa: S104 - the instance's own address
            environ={},
        ),
    )


def _create_arguments(given: Mapping[str, Any]) -> tuple[str, ...]:
    flags = {"gpu-name": "--gpu-name", "instance-type": "--type", "cloud-cred-id": "--cloud-cred-id",
             "workspace-group-id": "--workspace-group-id"}  # fmt: skip
    arguments: list[str] = []
    for name, flag in flags.items():
        if given[name]:
            if not _WORD.fullmatch(given[name]):
                raise BadInput("bad_platform_option", f"--{name} {given[name]!r} is refused", "see brev search")
            arguments += [flag, given[name]]
    return tuple(arguments)


def _decision(text: str | None) -> bool | None:
    return None if text is None else text == "yes"

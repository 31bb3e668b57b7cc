"""Which environment names a service gets: plain values by `--env NAME[=value]`, secrets by name alone (seed 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from inference_service import plain_text
from inference_service.errors import BadInput
from inference_service.references import Arch, EnvironmentRules, PlatformFacts

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


def set_by_us(rules: EnvironmentRules, platform: PlatformFacts, job_id: str) -> dict[str, str]:
    """The variables that say on what platform the service runs and as which job, in the order of the data."""
    values = {
        "TAO_EXECUTION_BACKEND": platform.tao_execution_backend,
        "TAO_API_JOB_ID": job_id,
        "CLOUD_BASED": rules.cloud_based,
    }
    return {name: values[name] for name in rules.set_by_us}


def parse(
    assignments: Sequence[str], arch: Arch, rules: EnvironmentRules, environ: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The plain values by name, and the names of the secrets, of `NAME=value` and `NAME` texts.

    Raises:
        BadInput: a name that may not be passed, a secret written with its value (which the message does not repeat), a
            plain name without a value that is not set in `environ`, or a name given twice.
    """
    values: dict[str, str] = {}
    secret_names: list[str] = []
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if name in values or name in secret_names:
            raise BadInput("env_given_twice", f"--env {name} is given twice", "give it once")
        if name in rules.secret and equals:
            raise BadInput(
                "secret_on_command_line",
                f"--env {name} was given with a value: a secret on a command line is seen by every user of the machine",
                f"export {name}=… and write --env {name}; what was typed is in the shell's history: replace it",
            )
        if name in rules.secret:
            check_secret_name(name, arch, rules)
            secret_names.append(name)
        else:
            check_plain_name(name, rules)
            values[name] = plain_text.check(value if equals else _from_environment(name, environ), f"--env {name}")
    return values, tuple(secret_names)


def check_plain_name(name: str, rules: EnvironmentRules) -> None:
    """Refuse a name that is not one of those a service may get.

    Raises:
        BadInput: it is forbidden, set by us, a secret, or unknown.
    """
    if name in rules.forbidden:
        raise BadInput("forbidden_env", f"{name} is never passed to a service: {rules.forbidden[name]}", "leave it out")
    if name in rules.set_by_us:
        raise BadInput("env_set_by_us", f"{name} follows from the platform and the job", "leave it out")
    if name in rules.never_passed or name in rules.secret:
        raise BadInput(
            "secret_not_passed", f"{name} is a secret of yours that no service gets as a plain value", "leave it out"
        )
    if name not in rules.allowed:
        # A name that does not look like one may be a secret's value in the wrong place, and is not repeated.
        told = f"the name {name!r}" if _NAME.fullmatch(name) else "that name"
        allowed = ", ".join([*sorted(rules.allowed), *sorted(rules.secret)])
        raise BadInput("unknown_env", f"--env: {told} cannot be passed to a service", f"these can: {allowed}")


def check_secret_name(name: str, arch: Arch, rules: EnvironmentRules) -> None:
    """Refuse a secret that this arch has no use for.

    Raises:
        BadInput: it is no secret that a service gets, or one for other archs only.
    """
    if name not in rules.secret:
        raise BadInput(
            "unknown_secret", f"{name} is no secret that a service gets", f"these are: {', '.join(rules.secret)}"
        )
    only_for = rules.secret[name]
    if only_for and arch.network_arch not in only_for:
        raise BadInput(
            "secret_for_other_arch",
            f"{name} is only for {', '.join(only_for)}, not for {arch.network_arch}",
            "leave it out",
        )


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    try:
        return environ[name]
    except KeyError:
        raise BadInput("env_not_set", f"{name} is not set in the environment", f"write --env {name}=value") from None

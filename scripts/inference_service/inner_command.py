"""The inner command: the one shell string that starts an arch's service, the same on every platform (seed 4.1).

`--job` and `--docker_env_vars` are read with json.loads by some images and with ast.literal_eval by others, so they are
written in what JSON and Python have in common: no true, false or null, and no \\uXXXX pairs for one character.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from inference_service.model_path import ModelPath
from inference_service.references import Arch, Launch

_PREFIX = "umask 0 && "


def build(
    arch: Arch, job_id: str, model: ModelPath, specs: Mapping[str, Any], env: Mapping[str, str], container_port: int
) -> str:
    """The shell string. `specs` are checked startup specs with defaults, `env` is what --docker_env_vars carries."""
    launch = arch.launch
    filled = {**specs, "container_port": container_port}
    fixed = [argument.format_map(filled) for argument in launch.fixed_arguments]
    if launch.style == "flags":
        argv = [*launch.argv, *_model_flag(launch, model, specs), *fixed, *_spec_flags(launch, specs)]
    else:
        job = {
            "job_id": job_id,
            "specs": {"model_path": model.text, **specs},
            "neural_network_name": arch.network_arch,
        }
        argv = [*launch.argv, *fixed, "--job", literal(job), "--docker_env_vars", literal(dict(env))]
    return _PREFIX + shlex.join(argv)


def literal(value: Any) -> str:
    """Compact JSON that is also a Python literal of the same value; booleans are 1 and 0."""
    return json.dumps(_without_booleans(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _without_booleans(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Mapping):
        return {key: _without_booleans(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_booleans(item) for item in value]
    return value


def _model_flag(launch: Launch, model: ModelPath, specs: Mapping[str, Any]) -> list[str]:
    if model.use == "registered_key" and launch.registered_key:
        return [launch.registered_key.flag, specs[launch.registered_key.spec]]
    return [launch.model_path_flag or "", model.text]


def _spec_flags(launch: Launch, specs: Mapping[str, Any]) -> list[str]:
    arguments: list[str] = []
    for name, field in launch.specs.items():
        if field.flag is None or name not in specs:
            continue
        value = specs[name]
        if value is True:
            arguments.append(field.flag)
        elif value is not False:
            arguments += [field.flag, str(value)]
    return arguments

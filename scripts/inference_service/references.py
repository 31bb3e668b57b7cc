"""The reference data: every fact about archs, platforms, environment names and wire formats that code may rely on.

`load()` reads the YAML and JSON files of `references/` and versions.yaml once per process, checks each against its JSON
Schema and returns them as frozen values. Nothing else in this project reads those files. What GPUs cost, which users
have a file of their own for, is pricing.py's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_service import paths
from inference_service.errors import BadInput, ToolError
from inference_service.reference_validation import read_json, read_yaml, validated


@dataclass(frozen=True)
class SpecField:
    """A startup spec that the arch takes by `--spec name=value`; `flag` is its flag where it is started by flags."""

    name: str
    type: str
    help: str
    default: Any = None
    minimum: float | None = None
    flag: str | None = None


@dataclass(frozen=True)
class RegisteredKey:
    """How an arch asks for the registered model key that a HuggingFace repository stands for (seed 4.1)."""

    flag: str
    spec: str
    question: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class LocalProcess:
    """How an arch's command runs as a process of this machine: the variables that carry host and port to it, the Python
    packages it needs (names to import), and the extra of this skill that installs them."""

    host_env: str
    port_env: str
    needs: tuple[str, ...]
    extra: str


@dataclass(frozen=True)
class Weights:
    """versions.yaml's weights.<name>: a model file in a wheel. Bytes and SHA-256 of the wheel and of the file in it."""

    model: str
    package: str
    version: str
    sha256: str
    bytes: int
    member: str
    member_sha256: str
    member_bytes: int


@dataclass(frozen=True)
class Launch:
    """service.yaml's container_commands.<arch>: how its container is started.

    `style` is `job_json` (--job J --docker_env_vars E) or `flags`. `model_path` maps a protocol (`hf_model://`,
    `claude://`, `absolute`) to what becomes of it: as_is, repo_id or registered_key. `local_process` is None where
    the command's port cannot be chosen, so that it runs in a container only. `secret_env` is passed when it is set in
    the environment, `required_secret_env` (a part of it) must be. `caller_key_env` is the one of them that the service
    wants of its callers, None where it takes anybody.
    """

    style: str
    description: str
    argv: tuple[str, ...]
    min_gpus: int
    default_gpus: int
    model_path: Mapping[str, str]
    model_path_flag: str | None
    registered_key: RegisteredKey | None
    fixed_arguments: tuple[str, ...]
    specs: Mapping[str, SpecField]
    refused_specs: Mapping[str, str]
    secret_env: tuple[str, ...]
    required_secret_env: tuple[str, ...]
    caller_key_env: str | None
    suggested_model_path: str | None
    local_process: LocalProcess | None


@dataclass(frozen=True)
class SamplingField:
    """One field of the request body. `ask`: the user is asked for it before each request (seed 6.1).

    `type` is integer, number, string, boolean or string_list. A null `default` means that the field is left out.
    """

    name: str
    type: str
    description: str
    default: Any
    ask: bool
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Media:
    """What media an arch takes. `data_uris` are (image tag pattern, accepted, source), the first match decides."""

    required: bool
    image_types: tuple[str, ...]
    video_types: tuple[str, ...]
    max_bytes: int
    maximum: int | None
    data_uris: tuple[tuple[str, bool, str], ...]


@dataclass(frozen=True)
class RequestRules:
    """request.yaml's network_arch_constraints.<arch>. `media` is None where the arch takes text alone."""

    fields: Mapping[str, SamplingField]
    media: Media | None
    system_prompt: bool
    streaming: bool
    answer: str


@dataclass(frozen=True)
class Arch:
    """One network arch: how it is started, and what its requests look like."""

    network_arch: str
    image_key: str | None
    model_path_is_folder: bool
    launch: Launch
    request: RequestRules


@dataclass(frozen=True)
class PlatformFacts:
    """service.yaml's platforms.<name>.

    `containers`: only what is mounted is seen. `model_path_on_this_machine`: a mount's source is a path of this
    machine, unless the variable `other_machine_env` names another one.
    """

    tao_execution_backend: str
    containers: bool
    model_path_on_this_machine: bool
    other_machine_env: str | None = None

    def runs_on_this_machine(self, environ: Mapping[str, str]) -> bool:
        """Whether paths of this machine mean something there."""
        other = environ.get(self.other_machine_env, "") if self.other_machine_env else ""
        return self.model_path_on_this_machine and not other.startswith(("ssh://", "tcp://", "http://", "https://"))


@dataclass(frozen=True)
class ModelPathProtocol:
    """A way to write --model-path: `form` for people, the regular expression it must match as a whole, and a note."""

    form: str
    pattern: str
    note: str = ""


@dataclass(frozen=True)
class Images:
    """Image keys, the dotted keys or URIs they map to, the pins of versions.yaml, and how our own images are built."""

    fallback_key: str
    override_env_prefix: str
    mapping: Mapping[str, str]
    pins: Mapping[str, str]
    built_here: Mapping[str, str]


@dataclass(frozen=True)
class EnvironmentRules:
    """Which names a container may get. `secret` maps a name to the archs it is only for (empty: any)."""

    allowed: frozenset[str]
    set_by_us: tuple[str, ...]
    forbidden: Mapping[str, str]
    secret: Mapping[str, tuple[str, ...]]
    never_passed: frozenset[str]
    cloud_based: str


@dataclass(frozen=True)
class Readiness:
    """Where a readiness body says why it is not ready, and which of those words mean wait or never."""

    type_fields: tuple[str, ...]
    retry: frozenset[str]
    failure: frozenset[str]


@dataclass(frozen=True)
class Wire:
    """request.yaml outside the archs: paths, timeouts, retries (seconds), media types, readiness, answers by status."""

    chat_completions: str
    liveness: str
    readiness_path: str
    content_type: str
    request_timeout_seconds: float
    readiness: Readiness
    retry_first_seconds: float
    retry_longest_seconds: float
    retry_give_up_after_seconds: float
    image_types: Mapping[str, str]
    video_types: Mapping[str, str]
    refused_media_protocols: Mapping[str, str]
    answers: Mapping[int, Mapping[str, str]]
    all_fields: frozenset[str]


@dataclass(frozen=True)
class References:
    """All reference data."""

    archs: Mapping[str, Arch]
    unsupported: tuple[str, ...]
    platforms: Mapping[str, PlatformFacts]
    images: Images
    environment: EnvironmentRules
    model_path_protocols: Mapping[str, ModelPathProtocol]
    refused_model_path_protocols: Mapping[str, str]
    container_port: int
    first_port: int
    last_port: int
    wire: Wire
    weights: Mapping[str, Weights]

    def arch(self, network_arch: str) -> Arch:
        """The arch of that name.

        Raises:
            BadInput: there is none, or none that can be started (seed 4.1); the message lists those that can.
        """
        if network_arch in self.archs:
            return self.archs[network_arch]
        choose = f"choose one of: {', '.join(self.archs)}"
        if network_arch in self.unsupported:
            raise BadInput(
                "unsupported_network_arch",
                f"network_arch {network_arch!r} is unsupported: service.yaml has no container_commands for it",
                choose,
            )
        raise BadInput("unknown_network_arch", f"unknown network_arch {network_arch!r}", choose)


@functools.cache
def load(directory: Path = paths.REFERENCES, versions: Path = paths.VERSIONS) -> References:
    """All reference data, read and validated once.

    Raises:
        ToolError: a file is missing, does not parse or breaks its schema; the message names file, key and rule.
    """
    service = validated(directory / "service.yaml", read_yaml(directory / "service.yaml"))
    request = validated(directory / "request.yaml", read_yaml(directory / "request.yaml"))
    pins = validated(versions, read_yaml(versions))
    names = service["valid_network_arch_config_basenames"]
    startable = [name for name in names if name in service["container_commands"]]
    _require(directory / "request.yaml", "network_arch_constraints", request["network_arch_constraints"], startable)
    return References(
        archs={name: _arch(directory, name, service, request) for name in startable},
        unsupported=tuple(name for name in names if name not in startable),
        platforms={name: PlatformFacts(**facts) for name, facts in service["platforms"].items()},
        images=_images(service, pins),
        environment=_environment(service),
        model_path_protocols={
            name: ModelPathProtocol(**protocol) for name, protocol in service["model_path_protocols"].items()
        },
        refused_model_path_protocols=service["refused_model_path_protocols"],
        container_port=service["container_port"],
        first_port=service["port_allocation"]["first"],
        last_port=service["port_allocation"]["last"],
        wire=_wire(request),
        weights={name: Weights(**weights) for name, weights in pins["weights"].items()},
    )


def _require(file: Path, key: str, mapping: Mapping[str, Any], names: Iterable[str]) -> None:
    """One file's names must be known to another: what no schema of one file can say."""
    for name in names:
        if name not in mapping:
            raise ToolError(
                "reference_inconsistent",
                f"{file}: {key}: nothing for {name!r} (rule: every name used is there: {', '.join(mapping)})",
                f"add {key}.{name}, or correct the name",
                file=str(file),
                key=f"{key}.{name}",
            )


def _arch(directory: Path, name: str, service: Mapping[str, Any], request: Mapping[str, Any]) -> Arch:
    command, constraints = service["container_commands"][name], request["network_arch_constraints"][name]
    _require(directory / "service.yaml", "model_path_protocols", service["model_path_protocols"], command["model_path"])
    _require(
        directory / "request.yaml",
        "chat_completions_request_body",
        request["chat_completions_request_body"],
        constraints["fields"],
    )
    image_key, is_folder = _config(directory / f"{name}.config.json")
    return Arch(
        network_arch=name,
        image_key=image_key,
        model_path_is_folder=is_folder,
        launch=_launch(command),
        request=_request_rules(constraints, request["chat_completions_request_body"]),
    )


def _config(file: Path) -> tuple[str | None, bool]:
    # Seed 2, rule 4: a missing config file is not an error, it falls back to the default image key.
    if not file.exists():
        return None, False
    config = validated(file, read_json(file), schema="network_arch.config")
    model_path = config.get("spec_params", {}).get("inference", {}).get("model_path", "")
    return config.get("api_params", {}).get("image") or None, "folder" in model_path


def _launch(command: Mapping[str, Any]) -> Launch:
    key, local = command.get("registered_key"), command.get("local_process")
    return Launch(
        style=command["style"],
        description=command["description"],
        argv=tuple(command["argv"]),
        min_gpus=command["num_gpus"]["minimum"],
        default_gpus=command["num_gpus"]["default"],
        model_path=command["model_path"],
        model_path_flag=command.get("model_path_flag"),
        registered_key=RegisteredKey(**{**key, "examples": tuple(key["examples"])}) if key else None,
        fixed_arguments=tuple(command.get("fixed_arguments", ())),
        specs={name: SpecField(name=name, **spec) for name, spec in command.get("specs", {}).items()},
        refused_specs=command.get("refused_specs", {}),
        secret_env=tuple(command["secret_env"]),
        required_secret_env=tuple(command.get("required_secret_env", ())),
        caller_key_env=command.get("caller_key_env"),
        suggested_model_path=command.get("suggested_model_path"),
        local_process=LocalProcess(**{**local, "needs": tuple(local["needs"])}) if local else None,
    )


def _request_rules(constraints: Mapping[str, Any], base: Mapping[str, Any]) -> RequestRules:
    fields = {
        name: SamplingField(name=name, **{"ask": False, **base[name], **override})
        for name, override in constraints["fields"].items()
    }
    media = constraints["media"]
    return RequestRules(
        fields=fields,
        media=_media(media) if media else None,
        system_prompt=constraints["system_prompt"],
        streaming=constraints["streaming"],
        answer=constraints["answer"],
    )


def _media(media: Mapping[str, Any]) -> Media:
    return Media(
        required=media["required"],
        image_types=tuple(media["image_types"]),
        video_types=tuple(media["video_types"]),
        max_bytes=media["max_bytes"],
        maximum=media.get("maximum"),
        data_uris=tuple((rule["image_tag"], rule["accepted"], rule["source"]) for rule in media["data_uris"]),
    )


def _images(service: Mapping[str, Any], pins: Mapping[str, Any]) -> Images:
    defaults = service["docker_image_defaults"]
    return Images(
        fallback_key=defaults["fallback_key"],
        override_env_prefix=defaults["override_env_prefix"],
        mapping=defaults["mapping"],
        pins={f"{group}.{name}": uri for group, names in pins["images"].items() for name, uri in names.items()},
        built_here=service["images_built_here"],
    )


def _environment(service: Mapping[str, Any]) -> EnvironmentRules:
    names, secrets = service["env_vars"], service["secrets_handling"]
    return EnvironmentRules(
        allowed=frozenset(names["allowed"]),
        set_by_us=tuple(names["set_by_us"]),
        forbidden=names["forbidden"],
        secret={name: tuple(secret.get("only_for", ())) for name, secret in secrets["secret_env_vars"].items()},
        never_passed=frozenset(secrets["never_passed"]),
        cloud_based=service["cloud_based"],
    )


def _wire(request: Mapping[str, Any]) -> Wire:
    readiness, retry, media_types = request["readiness"], request["retry"], request["media_types"]
    return Wire(
        chat_completions=request["endpoints"]["chat_completions"],
        liveness=request["endpoints"]["liveness"],
        readiness_path=request["endpoints"]["readiness"],
        content_type=request["content_type"],
        request_timeout_seconds=request["request_timeout_seconds"],
        readiness=Readiness(
            tuple(readiness["type_fields"]), frozenset(readiness["retry"]), frozenset(readiness["failure"])
        ),
        retry_first_seconds=retry["first_seconds"],
        retry_longest_seconds=retry["longest_seconds"],
        retry_give_up_after_seconds=retry["give_up_after_seconds"],
        image_types=media_types["image"],
        video_types=media_types["video"],
        refused_media_protocols=request["refused_media_protocols"],
        answers={int(status): answer for status, answer in request["container_response_shapes"].items()},
        all_fields=frozenset(request["chat_completions_request_body"]),
    )

"""The options that say what to start, the same for every script that takes them, and the LaunchSpec that they make."""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_service import output, paths, platforms
from inference_service.errors import BadInput, Need, ToolError

if TYPE_CHECKING:
    from inference_service.contracts import Driver, LaunchSpec, PlatformOption
    from inference_service.references import References

_PREFIX = "platform_option_"
_REPLACED_BY_A_SPEC = ("network_arch", "model_path", "num_gpus", "spec", "env", "mount")


def add_to(parser: ArgumentParser, argv: Sequence[str], takes_launch_spec: bool = False) -> None:
    """Add the options of a launch to this parser, and those of the platform that `argv` names.

    `takes_launch_spec`: also --launch-spec. No reference file is read here: what the values may be is checked later.
    """
    archs = sorted(file.name.removesuffix(".config.json") for file in paths.REFERENCES.glob("*.config.json"))
    launch = parser.add_argument_group("what to start")
    if takes_launch_spec:
        launch.add_argument(
            "--launch-spec",
            metavar="FILE",
            help="start what build_payload.py printed, from a file or - for standard input",
        )
    launch.add_argument("--network-arch", metavar="A", help=f"one of: {', '.join(archs)}")
    launch.add_argument(
        "--model-path", metavar="M", help="hf_model://<org>/<model>, or an absolute path in the container"
    )
    launch.add_argument("--platform", metavar="P", help=f"one of: {', '.join(platforms.names())}")
    launch.add_argument("--num-gpus", metavar="N", type=int, help="number of GPUs (default and minimum: the arch's)")
    launch.add_argument(
        "--spec",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="extra startup value of the arch; may be repeated",
    )
    launch.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="environment of the service; a secret (HF_TOKEN …) by its name alone; may be repeated",
    )
    launch.add_argument(
        "--mount",
        metavar="SOURCE[:TARGET][:ro|rw]",
        action="append",
        default=[],
        help="a path of the host that the container sees, read-only unless :rw; may be repeated. "
        "A local --model-path is mounted by itself",
    )
    launch.add_argument(
        "--host-port", metavar="N", type=int, help="port of this machine (default: the lowest free one)"
    )
    launch.add_argument(
        "--max-hours",
        metavar="H",
        type=float,
        help="hours it may run: then its platform ends it where it can, and stop_service.py --expired elsewhere",
    )
    _add_platform_options(parser, argv)


def spec_from(arguments: Namespace, environ: Mapping[str, str] = os.environ) -> LaunchSpec:
    """The launch spec that these arguments ask for.

    Raises:
        BadInput: something in them is refused; nothing was changed.
        DecisionNeeded: the arch, the model or the platform is not given, or the arch asks for more, and nobody is at a
            terminal.
    """
    from inference_service import payload, references, secrets

    refs = references.load()
    file = getattr(arguments, "launch_spec", None)
    if file:
        return _spec_of_file(file, arguments, refs, environ)
    _decide_what_is_missing(arguments, refs)
    options = _platform_options(arguments)
    wanted = payload.Wanted(
        network_arch=arguments.network_arch,
        model_path=arguments.model_path,
        platform=arguments.platform,
        num_gpus=arguments.num_gpus,
        specs=arguments.spec,
        env=arguments.env,
        mounts=arguments.mount,
        host_port=arguments.host_port,
        platform_options=options,
        max_hours=arguments.max_hours,
    )
    spec = payload.build(wanted, refs, environ)
    _check_with_driver(spec)
    if payload.model_is_in_the_image_alone(spec, refs, environ):
        output.note(f"{spec.model_path} does not exist on this machine: it has to be in the image")
    if not getattr(arguments, "dry_run", False):
        named = [text for text in arguments.env if "=" not in text and text in spec.secret_env]
        secrets.read(named, environ)
    return spec


def _add_platform_options(parser: ArgumentParser, argv: Sequence[str]) -> None:
    platform = _value_of("--platform", argv)
    title = f"options of {platform}" if platform else "options of the platform"
    options = _options_of(platform)
    described = "" if platform else "shown by --platform P --help"
    group = parser.add_argument_group(title, described if described or options else "none")
    for option in options:
        settings: dict[str, Any] = {"dest": _PREFIX + option.name, "default": SUPPRESS, "help": _help_of(option)}
        if option.type is bool:
            settings["action"] = "store_true"
        else:
            settings |= {"type": option.type, "metavar": option.metavar, "choices": option.choices or None}
        group.add_argument("--" + option.name.replace("_", "-"), **settings)


def _help_of(option: PlatformOption) -> str:
    given = option.default not in (None, False) and "default" not in option.help
    return (option.help + (f" (default: {option.default})" if given else "")).replace("%", "%%")


def _options_of(platform: str | None) -> Sequence[PlatformOption]:
    try:
        return platforms.load(platform).options if platform in platforms.names() else ()
    except ToolError:
        return ()  # It is said when the platform is used; --help works all the same.


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    value = None
    for index, word in enumerate(argv):
        if word == option:
            value = argv[index + 1] if index + 1 < len(argv) else None
        elif word.startswith(option + "="):
            value = word.removeprefix(option + "=")
    return value


def _platform_options(arguments: Namespace) -> dict[str, Any]:
    return {name.removeprefix(_PREFIX): value for name, value in vars(arguments).items() if name.startswith(_PREFIX)}


def _decide_what_is_missing(arguments: Namespace, refs: References) -> None:
    """Ask for the arch, the model and the platform, all in one round, and put the answers into `arguments`."""
    needs = []
    if arguments.network_arch is None:
        archs = [{"network_arch": name, "description": arch.launch.description} for name, arch in refs.archs.items()]
        needs.append(Need("network_arch", "Which network arch?", "--network-arch A", options=archs))
    if arguments.model_path is None:
        question = _model_question(arguments.network_arch, refs)
        needs.append(Need("model_path", question, "--model-path M", type="string", required=True))
    if arguments.platform is None:
        choices = [{"platform": name} for name in platforms.names()]
        needs.append(Need("platform", "On which platform?", "--platform P", options=choices))
    if needs:
        for name, answer in output.decide(needs).items():
            setattr(arguments, name, answer)


def _model_question(network_arch: str | None, refs: References) -> str:
    from inference_service import model_path

    if network_arch is None:
        forms = ", or ".join(protocol.form for protocol in refs.model_path_protocols.values())
        return f"Which model? {forms}."
    arch = refs.arch(network_arch)
    suggested = arch.launch.suggested_model_path
    return f"Which model? {model_path.forms(arch, refs)}." + (f" For example {suggested}." if suggested else "")


def _check_with_driver(spec: LaunchSpec) -> None:
    """Hold what only this platform takes against its driver, where there is one on this machine."""
    if spec.platform not in platforms.names():
        return
    driver = platforms.load(spec.platform)
    if spec.host_port is not None and not driver.needs_host_port:
        raise BadInput("no_host_port", f"{spec.platform} uses no port of this machine", "leave --host-port out")
    _check_platform_options(spec.platform_options, driver)


def _check_platform_options(given: Mapping[str, Any], driver: Driver) -> None:
    options = {option.name: option for option in driver.options}
    for name, value in given.items():
        if name not in options:
            has = f"it has: {', '.join(options)}" if options else "it has none"
            raise BadInput("unknown_platform_option", f"{driver.name} has no option {name!r}", has)
        option = options[name]
        fits = isinstance(value, option.type) or (option.type is float and isinstance(value, int))
        if (
            not fits
            or (isinstance(value, bool) and option.type is not bool)
            or (option.choices and value not in option.choices)
        ):
            choices = (
                f"one of: {', '.join(option.choices)}" if option.choices else f"a value of type {option.type.__name__}"
            )
            raise BadInput("bad_platform_option", f"{name}={value!r} is refused", f"give {choices}: {option.help}")


def _spec_of_file(file: str, arguments: Namespace, refs: References, environ: Mapping[str, str]) -> LaunchSpec:
    from dataclasses import replace

    from inference_service import payload

    for name in _REPLACED_BY_A_SPEC:
        if getattr(arguments, name) not in (None, []):
            raise BadInput(
                "launch_spec_and_options",
                f"--{name.replace('_', '-')} and --launch-spec are both given: the launch spec says it already",
                f"leave one out, or build another launch spec with --{name.replace('_', '-')}",
            )
    spec = _read_spec(file)
    if arguments.platform not in (None, spec.platform):
        raise BadInput(
            "launch_spec_for_other_platform",
            f"the launch spec is for {spec.platform}, not for {arguments.platform}",
            f"build it with build_payload.py --platform {arguments.platform}",
        )
    spec = replace(
        spec,
        host_port=spec.host_port if arguments.host_port is None else arguments.host_port,
        max_hours=spec.max_hours if arguments.max_hours is None else arguments.max_hours,
        platform_options={**spec.platform_options, **_platform_options(arguments)},
    )
    payload.check(spec, refs, environ)
    _check_with_driver(spec)
    return spec


def _read_spec(file: str) -> LaunchSpec:
    import json

    from inference_service import contracts, reference_validation

    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        document = json.loads(text)
    except OSError as error:
        raise BadInput(
            "launch_spec_unreadable", f"cannot read {name}: {error.strerror}", "correct --launch-spec"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            "launch_spec_malformed", f"{name} is not JSON: {error}", "give what build_payload.py printed, unchanged"
        ) from error
    schema = reference_validation.read_json(paths.SCHEMAS / "launch_spec.schema.json")
    try:
        reference_validation.check(document, schema, name)
    except ToolError as error:
        raise BadInput(
            error.type, error.message, "give what build_payload.py printed, unchanged", **error.details
        ) from error
    return contracts.LaunchSpec.from_json(document)

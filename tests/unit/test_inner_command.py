"""The inner command: exactly the published one, the same on every platform, and unharmed by a shell."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inference_service import inner_command, payload, references
from inference_service.contracts import LaunchSpec
from inference_service.errors import BadInput

REFS = references.load()
PREFIX = "umask 0 && "


def build(arch: str, model_path: str, *specs: str, platform: str = "slurm") -> LaunchSpec:
    return payload.build(payload.Wanted(arch, model_path, platform, specs=specs), REFS, {})


def argv_of(spec: LaunchSpec) -> list[str]:
    assert spec.command.startswith(PREFIX)
    return shlex.split(spec.command.removeprefix(PREFIX))


def test_cosmos_rl_takes_one_job_and_one_environment() -> None:
    spec = build("cosmos-rl", "hf_model://nvidia/Cosmos-Reason1-7B")
    job = (
        f'{{"job_id":"{spec.job_id}","specs":{{"model_path":"hf_model://nvidia/Cosmos-Reason1-7B"}},'
        '"neural_network_name":"cosmos-rl"}'
    )
    env = f'{{"TAO_EXECUTION_BACKEND":"slurm","TAO_API_JOB_ID":"{spec.job_id}","CLOUD_BASED":"False"}}'
    assert spec.command == (
        f"umask 0 && cosmos-rl-inference-microservice --job {shlex.quote(job)} --docker_env_vars {shlex.quote(env)}"
    )


def test_tao_dataservices_is_given_a_bare_repository_and_its_specs() -> None:
    spec = build("tao-dataservices", "hf_model://a/b", "trust_remote_code=true", "device_map=cpu")
    argv = argv_of(spec)
    assert argv[:6] == [
        *("python", "-m", "nvidia_tao_core.microservices.handlers.huggingface_inference_microservice_server"),
        *("--port", "8080", "--job"),
    ]
    assert json.loads(argv[6])["specs"] == {"model_path": "a/b", "trust_remote_code": 1, "device_map": "cpu"}
    assert argv[7] == "--docker_env_vars"


@pytest.mark.parametrize(
    ("model_path", "specs", "arguments"),
    [
        ("/m/x.pt", [], "--checkpoint-path /m/x.pt --output-dir /tmp/cosmos-predict-output --port 8080"),
        ("hf_model://a/b", ["model=base-2b"], "--model base-2b --output-dir /tmp/cosmos-predict-output --port 8080"),
        (
            "/m/x.pt",
            ["pid-file=/tmp/p", "output-dir=/out", "disable-guardrails=true", "offload-diffusion-model=false"],
            "--checkpoint-path /m/x.pt --output-dir /out --port 8080 --disable-guardrails --pid-file /tmp/p",
        ),
        (
            "/m/x.pt",
            ["idle-timeout-minutes=7.5", "context-parallel-size=2"],
            "--checkpoint-path /m/x.pt --output-dir /tmp/cosmos-predict-output --port 8080 "
            "--idle-timeout-minutes 7.5 --context-parallel-size 2",
        ),
    ],
)
def test_cosmos_predict_is_started_by_flags(model_path: str, specs: list[str], arguments: str) -> None:
    spec = build("cosmos-predict2.5", model_path, *specs)
    assert spec.command == f"umask 0 && cosmos_predict inference_microservice start {arguments}"


@pytest.mark.parametrize("arch", sorted(REFS.archs))
def test_the_command_is_byte_identical_on_every_platform_but_for_the_backends_name(arch: str) -> None:
    protocol = next(iter(REFS.arch(arch).launch.model_path))
    model_path = {"hf_model://": "hf_model://a/b", "claude://": "claude://c"}[protocol]
    specs = ["model=base-2b"] if REFS.arch(arch).launch.registered_key else []
    commands = set()
    for platform, facts in REFS.platforms.items():
        spec = build(arch, model_path, *specs, platform=platform)
        assert spec.env["TAO_EXECUTION_BACKEND"] == facts.tao_execution_backend
        backend = f'"TAO_EXECUTION_BACKEND":"{facts.tao_execution_backend}"'
        assert spec.command.count(backend) == (0 if REFS.arch(arch).launch.style == "flags" else 1)
        commands.add(spec.command.replace(spec.job_id, "JOB").replace(backend, "BACKEND"))
    assert len(commands) == 1


json_values = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
@example({"a": "\u2028\u2029\x85\x0c\x1c\x7f\ufeff😀\\\"'\r\n\0"})
@example({"a": [True, {"b": False}, -0.0, 1e308, 5e-324, 10**40]})
def test_what_is_written_is_the_same_value_to_json_and_to_python(value: Any) -> None:
    text = inner_command.literal(value)
    assert json.loads(text) == ast.literal_eval(text) == value


# Slashes are left out, so that no example becomes "/" or a placeholder between slashes by chance.
awkward = st.text(st.characters(codec="utf-8", exclude_characters="\0/<>"), min_size=1)


@given(path=awkward, value=awkward)
@example(path="a'b\"c\n$(id)`id`\\ ;&|*?~!#", value="$(touch /tmp/x)\u2028'")
def test_any_model_path_and_value_come_back_out_of_the_shells_words(path: str, value: str) -> None:
    spec = build("tao-dataservices", "/" + path, f"torch_dtype={value}")
    job = argv_of(spec)[6]
    assert (
        json.loads(job)["specs"] == ast.literal_eval(job)["specs"] == {"model_path": "/" + path, "torch_dtype": value}
    )


@pytest.fixture(scope="module")
def echoing_programs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """An environment in which the archs' programs are found, and print their arguments as JSON."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "echo.py").write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    # A shebang cannot name an interpreter whose path has a space.
    script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(folder / "echo.py"))} "$@"\n'
    for name in ("cosmos-rl-inference-microservice", "cosmos_predict", "python"):
        program = folder / name
        program.write_text(script)
        program.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin", "LANG": "C.UTF-8", "HOME": str(folder)}


def run(command: str, environ: Mapping[str, str], folder: Path) -> list[str]:
    done = subprocess.run(["bash", "-c", command], env=environ, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    arguments: list[str] = json.loads(done.stdout)
    return arguments


@given(path=awkward, value=awkward)
@example(path='it\'s $(touch hacked) `touch hacked` "$HOME" \\n\n*', value="a\nb'; touch hacked; '\u2028😀")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_real_bash_runs_nothing_of_a_path_or_value_and_changes_neither(
    path: str, value: str, echoing_programs: Mapping[str, str], tmp_path: Path
) -> None:
    arguments = run(build("tao-dataservices", "/" + path, f"torch_dtype={value}").command, echoing_programs, tmp_path)
    job = arguments[arguments.index("--job") + 1]
    assert json.loads(job)["specs"] == {"model_path": "/" + path, "torch_dtype": value}
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


@given(path=awkward, value=awkward)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_real_bash_changes_no_flags_value(
    path: str, value: str, echoing_programs: Mapping[str, str], tmp_path: Path
) -> None:
    try:
        spec = build("cosmos-predict2.5", "/" + path, f"pid-file={value}")
    except BadInput as error:
        assert error.type == "bad_spec_value"
        assert value.startswith("-")
        return
    arguments = run(spec.command, echoing_programs, tmp_path)
    assert arguments[2:4] == ["--checkpoint-path", "/" + path]
    assert arguments[-2:] == ["--pid-file", value]


def test_the_umask_of_what_it_runs_is_zero(tmp_path: Path) -> None:
    program = tmp_path / "cosmos-rl-inference-microservice"
    program.write_text("#!/bin/sh\numask\n")
    program.chmod(0o755)
    command = build("cosmos-rl", "hf_model://a/b").command
    done = subprocess.run(
        ["bash", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.stdout.strip() in ("0000", "0", "000")

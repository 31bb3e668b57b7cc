"""The batch script of a service: one job step, the container, and whatever happens no secret left behind.

The job's folder (FOLDER in the user's home on the cluster, which all nodes see) is its working directory: it holds the
log and, until the job has read it, the file with the secrets.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import slurm_images
from slurm_images import APPTAINER, PYXIS, ImageNames
from slurm_labels import comment, job_name
from slurm_options import Settings

from inference_service.contracts import LaunchSpec, Mount
from inference_service.errors import BadInput

FOLDER = ".tao-run-inference-service"
LOG, ENV_FILE = "log", "env"

# The exit statuses by which the script itself says why it did not start the service.
NO_SECRETS, NO_RUNTIME, PORT_TAKEN = 95, 96, 97
EXPLAINED = {
    NO_SECRETS: "the file with its secrets was gone when the job began",
    NO_RUNTIME: "the node has none of the container runtimes that can run the image",
    PORT_TAKEN: "its port was used by another program of the node: --exclude that node, or --exclusive",
}


def build(spec: LaunchSpec, settings: Settings, labels: Mapping[str, str]) -> str:
    """The job script. It holds the names of secrets only."""
    images = slurm_images.check(spec.image, settings.runtime)
    lines = ["#!/bin/bash", *_directives(spec, settings, labels), "", *_preparation(spec), ""]
    lines += _choice(images.usable(settings.runtime))
    for name, value in spec.env.items():
        lines.append(f"export_to_container {name} {shlex.quote(value)}")
    lines += ["", f"inner={shlex.quote(spec.command)}", 'case "$runtime" in']
    for runtime in images.usable(settings.runtime):
        words = _pyxis(spec, images) if runtime == PYXIS else _apptainer(spec, images)
        lines.append(f'    {runtime}) {" ".join(words)} bash -c "$inner" & ;;')
    return "\n".join([*lines, "esac", *_WAIT, ""])


def env_file(secret_values: Mapping[str, str]) -> str:
    """What the file with the secrets holds: shell commands that the job script sources once and deletes."""
    return "".join(f"export_to_container {name} {shlex.quote(value)}\n" for name, value in secret_values.items())


def check_mounts(mounts: Sequence[Mount]) -> None:
    """Refuse (BadInput) paths that neither runtime's option can express."""
    for mount in mounts:
        for path in (mount.source, mount.target):
            if any(mark in path for mark in ":,\n"):
                raise BadInput(
                    "bad_mount", f"--mount: {path!r} has a ':' or ',' in it, which separates mounts here", "rename it"
                )


def _directives(spec: LaunchSpec, settings: Settings, labels: Mapping[str, str]) -> list[str]:
    options = {
        "job-name": job_name(spec.job_id),
        "comment": comment(labels),
        "output": LOG,
        "nodes": "1",
        "ntasks": "1",
        "partition": settings.partition,
        "account": settings.account,
        "time": str(settings.minutes or ""),
        "gres": settings.gres,
        "cpus-per-task": str(settings.cpus or ""),
        "mem": settings.mem,
        "exclude": settings.exclude,
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    # A second run would find its secrets gone and its tunnel at another node.
    return [*lines, "#SBATCH --no-requeue", *(["#SBATCH --exclusive"] if settings.exclusive else [])]


def _preparation(spec: LaunchSpec) -> list[str]:
    port = spec.container_port
    lines = [
        "umask 077",
        "names=",
        "child=",
        "export_to_container() {",
        '    export "$1=$2" "APPTAINERENV_$1=$2"',
        '    names="$names${names:+,}$1"',
        "}",
        f"trap 'rm -f {ENV_FILE}' EXIT",
        # With job control the container has a process group of its own, all of which is to end.
        "set -m",
        """trap '[ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null' TERM""",
        # Which of the node's GPUs are the job's is Slurm's to say; packages in the user's home are not the image's.
        '[ -z "${CUDA_VISIBLE_DEVICES-}" ] || export_to_container CUDA_VISIBLE_DEVICES "$CUDA_VISIBLE_DEVICES"',
        "export_to_container PYTHONNOUSERSITE 1",
    ]
    if spec.secret_env:
        lines += [
            f"# {', '.join(spec.secret_env)}",
            f". ./{ENV_FILE} || exit {NO_SECRETS}",
            f"rm -f {ENV_FILE}",
        ]
    return [
        *lines,
        f"if (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; then",
        f'    echo "port {port} of $(hostname) is used by another program: --exclude this node, or --exclusive" >&2',
        f"    exit {PORT_TAKEN}",
        "fi",
    ]


def _choice(usable: Sequence[str]) -> list[str]:
    tests = {
        PYXIS: "srun --help 2>/dev/null | grep -q -e --container-image",
        APPTAINER: "command -v apptainer >/dev/null",
    }
    lines = [
        f"{'if' if index == 0 else 'elif'} {tests[name]}; then runtime={name}" for index, name in enumerate(usable)
    ]
    missing = f'echo "$(hostname) has no {" and no ".join(usable)}" >&2'
    return [*lines, f"else {missing}; exit {NO_RUNTIME}; fi"]


def _pyxis(spec: LaunchSpec, images: ImageNames) -> list[str]:
    words = ["srun", "--ntasks=1", f"--container-image={shlex.quote(images.pyxis or '')}"]
    if spec.mounts:
        mounts = ",".join(f"{mount.source}:{mount.target}:{_mode(mount)}" for mount in spec.mounts)
        words.append(f"--container-mounts={shlex.quote(mounts)}")
    # Of variables that the image sets as well, the job's are taken. The home folder is there, as with Apptainer:
    # weights that were downloaded once stay in its cache.
    return [*words, '--container-env="$names"', "--container-mount-home", "--container-writable"]


def _apptainer(spec: LaunchSpec, images: ImageNames) -> list[str]:
    # The node's environment stays outside: it names paths that the container does not have.
    words = ["apptainer", "exec", "--cleanenv", *(["--nv"] if spec.num_gpus else [])]
    for mount in spec.mounts:
        words += ["--bind", shlex.quote(f"{mount.source}:{mount.target}:{_mode(mount)}")]
    return [*words, shlex.quote(images.apptainer or "")]


def _mode(mount: Mount) -> str:
    return "ro" if mount.read_only else "rw"


# A signal ends the first wait; the second is for the end that it brings about.
_WAIT = (
    "child=$!",
    'wait "$child"',
    "status=$?",
    'while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done',
    'exit "$status"',
)

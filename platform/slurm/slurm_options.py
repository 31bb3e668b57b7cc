"""What a user may choose about a job beyond the launch spec: parsed, and refused before the cluster is asked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service import output
from inference_service.contracts import LaunchSpec, PlatformOption
from inference_service.errors import BadInput, Need

RUNTIMES = ("auto", "pyxis", "apptainer")
CLUSTERS_DEFAULT = "cluster-default"

OPTIONS = (
    PlatformOption(
        "partition",
        f"partition of the job (default: $SLURM_PARTITION); {CLUSTERS_DEFAULT} leaves it to the cluster",
        metavar="NAME",
    ),
    PlatformOption(
        "account",
        f"account that the job is charged to (default: $SLURM_ACCOUNT); {CLUSTERS_DEFAULT} leaves it to the cluster",
        metavar="NAME",
    ),
    PlatformOption("gres", "generic resources instead of gpu:<num-gpus>, for example gpu:a100:2", metavar="LIST"),
    PlatformOption("cpus", "CPUs of the job (default: the partition's)", type=int, metavar="N"),
    PlatformOption("mem", "memory of the job, for example 64G (default: the partition's)", metavar="SIZE"),
    PlatformOption("exclusive", "a node for this job alone: nothing else can use its port there", type=bool),
    PlatformOption("exclude", "nodes not to use, for example node3 or node[1-4]", metavar="NODES"),
    PlatformOption(
        "runtime",
        "what runs the container on the node: pyxis, apptainer, or auto, which takes pyxis where srun has it",
        default="auto",
        choices=RUNTIMES,
    ),
)

# What goes into an #SBATCH line must not be able to end it or to begin another option.
_FORMS = {
    "partition": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,-]*"),
    "account": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*"),
    "gres": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:,=/-]*"),
    "mem": re.compile(r"[1-9]\d*[KMGT]?"),
    "exclude": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,\[\]-]*"),
}
_GPUS = re.compile(r"gpu(?::[A-Za-z0-9_.-]*[A-Za-z_.-][A-Za-z0-9_.-]*)?(?::(\d+))?")


@dataclass(frozen=True)
class Settings:
    """The options of one job, checked. `minutes` is its time limit; None or empty leaves it to the cluster."""

    partition: str
    account: str
    minutes: int | None
    gres: str
    cpus: int | None
    mem: str
    exclusive: bool
    exclude: str
    runtime: str


def settings(spec: LaunchSpec, environ: Mapping[str, str] = os.environ) -> Settings:
    """The checked options of this launch; one that was not given has its default.

    Raises:
        BadInput: an option has no meaning, or its GPUs are not `num_gpus` many.
        DecisionNeeded: partition or account is not given, and nobody is at a terminal to say (seed 4.2).
    """
    given = {option.name: option.default for option in OPTIONS}
    given.update({name.replace("_", "-"): value for name, value in spec.platform_options.items() if value is not None})
    given["partition"] = given["partition"] or environ.get("SLURM_PARTITION")
    given["account"] = given["account"] or environ.get("SLURM_ACCOUNT")
    _decide(given)
    for name, form in _FORMS.items():
        if given[name] and not form.fullmatch(given[name]):
            raise BadInput(
                f"bad_{name}", f"--{name} {given[name]!r} is not one", f"correct --{name} (or ${_variable(name)})"
            )
    return Settings(
        partition=_chosen(given["partition"]),
        account=_chosen(given["account"]),
        minutes=None if spec.max_hours is None else math.ceil(spec.max_hours * 60),
        gres=_gres(given["gres"], spec.num_gpus),
        cpus=_cpus(given["cpus"]),
        mem=given["mem"] or "",
        exclusive=bool(given["exclusive"]),
        exclude=given["exclude"] or "",
        runtime=given["runtime"],
    )


def _decide(given: dict[str, Any]) -> None:
    """Put the user's answers for what is not given into `given`, and into the environment: they hold for this start."""
    questions = {
        "partition": "Which Slurm partition? sinfo lists them.",
        "account": "Which Slurm account is charged? sacctmgr show associations user=$USER lists yours.",
    }
    needs = [
        Need(
            name,
            f"{question} {CLUSTERS_DEFAULT} leaves it to the cluster.",
            f"--{name} NAME",
            type="string",
            required=True,
        )
        for name, question in questions.items()
        if not given[name]
    ]
    if needs:
        for name, answer in output.decide(needs).items():
            given[name] = os.environ[_variable(name)] = answer


def _chosen(name: str) -> str:
    return "" if name == CLUSTERS_DEFAULT else name


def _cpus(cpus: Any) -> int | None:
    if cpus is not None and (not isinstance(cpus, int) or cpus < 1):
        raise BadInput("bad_cpus", f"--cpus {cpus} is not a number of CPUs", "give 1 or more")
    return cpus


def _gres(gres: str | None, num_gpus: int) -> str:
    if not gres:
        return f"gpu:{num_gpus}" if num_gpus else ""
    gpus = sum(int(found[1] or 1) for item in gres.split(",") if (found := _GPUS.fullmatch(item)))
    if gpus != num_gpus:
        raise BadInput(
            "gpu_count_mismatch",
            f"--gres {gres} asks for {gpus} GPU(s), but num_gpus is {num_gpus}",
            f"use --num-gpus {gpus}, or correct --gres",
        )
    return gres


def _variable(name: str) -> str:
    return f"SLURM_{name.upper()}"

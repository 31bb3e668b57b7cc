"""Which machine a service gets: Lepton's shapes have opaque ids, and say themselves how many GPUs they have."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_options import Settings
from lepton_workspace import Workspace, errors

from inference_service import output
from inference_service.errors import BadInput, Need, ToolError

_PURPOSE = "deployment"


@dataclass(frozen=True)
class Shape:
    """One shape: its id, its whole GPUs and their type, its memory in MiB."""

    id: str
    num_gpus: float
    gpu_type: str
    memory_mib: int

    def __str__(self) -> str:
        gpus = f"{self.num_gpus:g} x {self.gpu_type or 'GPU'}" if self.num_gpus else "no GPU"
        return f"{self.id} ({gpus}, {self.memory_mib / 1024:g} GiB)"


def listed(workspace: Workspace, node_group_id: str | None = None) -> list[Shape]:
    """The shapes that an endpoint can have here, the fewest GPUs and the least memory first.

    Raises:
        ToolError: the workspace cannot be asked.
    """
    with errors(workspace):
        found = workspace.client.shapes.list_shapes(node_group=node_group_id, purpose=_PURPOSE)
    shapes = [_shape(each) for each in found]
    return sorted(shapes, key=lambda shape: (shape.num_gpus, shape.memory_mib, shape.id))


def node_group_id(workspace: Workspace, wanted: str | None) -> str | None:
    """The id of the node group of this id or name; None for none.

    Raises:
        BadInput: there is no such node group; those there are are listed.
        ToolError: the workspace cannot be asked.
    """
    if wanted is None:
        return None
    with errors(workspace):
        groups = workspace.client.nodegroup.list_all()
    for group in groups:
        if wanted in (group.metadata.id_, group.metadata.name):
            return str(group.metadata.id_ or group.metadata.name)
    there = ", ".join(sorted(str(group.metadata.name or group.metadata.id_) for group in groups)) or "none"
    raise BadInput(
        "unknown_node_group", f"the workspace has no node group {wanted!r}", f"--dedicated-node-group, one of: {there}"
    )


def choose(shapes: Sequence[Shape], num_gpus: int, settings: Settings) -> str:
    """The id of the shape: the one that was asked for, or the only one with that many GPUs.

    Raises:
        BadInput: there is none such; what there is is listed.
        DecisionNeeded: there are several, which differ in price, and nobody is at a terminal to be asked.
    """
    if settings.resource_shape is not None:
        return _require(shapes, settings.resource_shape, num_gpus)
    fitting = [shape for shape in shapes if shape.num_gpus == num_gpus]
    if not fitting:
        counts = sorted({shape.num_gpus for shape in shapes})
        raise BadInput(
            "no_shape",
            f"Lepton has no shape with {num_gpus} GPU(s) here",
            f"--num-gpus, one of: {', '.join(f'{count:g}' for count in counts if count == int(count)) or 'none'}",
        )
    if len(fitting) == 1:
        return fitting[0].id
    options = [
        {
            "resource_shape": shape.id,
            "gpu_type": shape.gpu_type,
            "num_gpus": shape.num_gpus,
            "memory_mib": shape.memory_mib,
        }
        for shape in fitting
    ]
    question = f"Which machine shape with {num_gpus} GPU(s)?"
    answers = output.decide([Need("resource_shape", question, "--resource-shape ID", options=options)])
    return answers["resource_shape"]


def _require(shapes: Sequence[Shape], wanted: str, num_gpus: int) -> str:
    found = next((shape for shape in shapes if shape.id == wanted), None)
    if found is None:
        raise BadInput(
            "unknown_shape",
            f"Lepton has no shape {wanted!r} for endpoints here",
            f"--resource-shape, one of: {_list(shapes)}",
        )
    if found.num_gpus != num_gpus:
        raise BadInput(
            "gpu_count_mismatch",
            f"the shape {found} has {found.num_gpus:g} GPU(s), but num_gpus is {num_gpus}",
            f"use --num-gpus {found.num_gpus:g}, or another shape",
        )
    return found.id


def _list(shapes: Iterable[Shape]) -> str:
    return ", ".join(shlex.quote(shape.id) for shape in shapes) or "none"


def _shape(raw: Any) -> Shape:
    metadata, spec = raw.metadata, raw.spec
    name = metadata.id_ or metadata.name or spec.name
    if not name:
        raise ToolError("lepton_error", "Lepton lists a shape without an id", "pip install -U leptonai")
    num_gpus = spec.accelerator_fraction or spec.accelerator_num or 0.0
    return Shape(
        id=str(name).lower(),
        num_gpus=float(num_gpus),
        gpu_type=spec.accelerator_type or "",
        memory_mib=spec.memory_in_mb or 0,
    )

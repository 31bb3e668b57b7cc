"""What lepton needs of this machine and of the workspace, each check with what mends it. No token is shown."""

from __future__ import annotations

import importlib.metadata

import lepton_names as names
import lepton_shapes as shapes
import lepton_workspace as workspaces
from lepton_workspace import Workspace, errors

from inference_service.contracts import Check
from inference_service.errors import ToolError


def checks() -> list[Check]:
    """All checks that can be made: without the package or a workspace those that need them are left out."""
    try:
        workspaces.package()
        done = [Check("leptonai package", True, f"leptonai {importlib.metadata.version('leptonai')}")]
    except ToolError as error:
        return [Check("leptonai package", False, error.message, error.fix)]
    try:
        found = workspaces.credentials({})
        done.append(Check("credentials", True, f"workspace {found.workspace_id}, token from {found.source}"))
    except ToolError as error:
        return [*done, Check("credentials", False, error.message, error.fix)]
    try:
        workspace = workspaces.connect({})
    except ToolError as error:
        return [*done, Check("workspace", False, error.message, error.fix)]
    return [
        *done,
        _workspace(workspace),
        _shapes(workspace),
        quota(workspace),
        _registries(workspace),
        _left(workspace),
    ]


def quota(workspace: Workspace) -> Check:
    """Whether the workspace's quota has a GPU left; a limit of 0 is none."""
    given = workspace.info.resource_quota
    limit, used = given.limit.accelerator_num, given.used.accelerator_num
    if not limit:
        return Check("gpu quota", True, f"no limit, {used:g} GPU(s) in use")
    told = f"{used:g} of {limit:g} GPU(s) in use"
    if used >= limit:
        return Check("gpu quota", False, told, "python scripts/stop_service.py, or ask the workspace's owner for more")
    return Check("gpu quota", True, told)


def _workspace(workspace: Workspace) -> Check:
    info = workspace.info
    state = str(info.workspace_state.value)
    routes = "endpoints" if workspace.new_routes else "deployments"
    told = f"{info.workspace_name} at {workspace.url}: {state}, API of {routes}"
    if state == "normal":
        return Check("workspace", True, told)
    return Check("workspace", False, told, "ask the workspace's owner: nothing starts in a workspace of that state")


def _shapes(workspace: Workspace) -> Check:
    try:
        found = shapes.listed(workspace)
    except ToolError as error:
        return Check("shapes", False, error.message, error.fix)
    if not found:
        return Check(
            "shapes",
            False,
            "no machine shape for endpoints",
            "try --dedicated-node-group; lep node list has the groups",
        )
    return Check("shapes", True, ", ".join(map(str, found)))


def _registries(workspace: Workspace) -> Check:
    count = workspace.info.workloads.num_image_pull_secrets
    told = (
        f"{count} registry credential(s)"
        if count
        else "no registry credential: images that are not public cannot be pulled"
    )
    return Check("image pull", True, f"{told} (--image-pull-secret NAME; made in the workspace's settings)")


def _left(workspace: Workspace) -> Check:
    """Secrets of services that are no more: of a start that was killed, on a machine whose registry is lost."""
    try:
        with errors(workspace):
            secrets = {item.name: names.job_id_of_secret(item.name) for item in workspace.client.secret.list_all()}
            endpoints = {_name(each) for each in workspace.client.deployment.list_all()}
    except ToolError as error:
        return Check("secrets", False, error.message, error.fix)
    left = sorted(name for name, job_id in secrets.items() if job_id and names.endpoint_name(job_id) not in endpoints)
    if not left:
        return Check("secrets", True, "none is left of services that are no more")
    told = f"left of services that are no more, or are just being started: {', '.join(left)}"
    return Check("secrets", True, f"{told}; python scripts/registry.py reconcile, or: lep secret remove -n {left[0]}")


def _name(deployment: object) -> str:
    from lepton_endpoint import name_of

    return name_of(deployment)

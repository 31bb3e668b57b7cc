"""Services as endpoints of DGX Cloud Lepton, through the official client (facts: lepton; seed 4.2, 4.3).

A batch job of Lepton has no address, an endpoint has one: `https://…`, with a token that every request needs. Its name
follows from the job_id, as do those of its secrets, so that a start that was killed can be cleaned up by whoever knows
the job_id. The workspace that has a service is remembered with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import lepton_endpoint as endpoint
import lepton_names as names
import lepton_options as options
import lepton_shapes as shapes
import lepton_token as tokens
import lepton_workspace as workspaces
from lepton_workspace import Workspace, errors, existing

from inference_service import paths
from inference_service.contracts import (
    Check,
    LaunchSpec,
    PlatformOption,
    PlatformStatus,
    Progress,
    Report,
    ServiceEntry,
    StartedService,
    State,
)
from inference_service.errors import BadInput, ToolError
from inference_service.http_session import AUTH_ENV, AUTH_FILE
from inference_service.interruption import held_back

# An endpoint's address follows from its name: it is there at once, or something is wrong.
_ADDRESS_SECONDS = 120.0
_REMOVAL_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_CONFLICT = 409


class Driver:
    """The platform lepton; see contracts.Driver for what each method promises."""

    name = endpoint.PLATFORM
    options: tuple[PlatformOption, ...] = options.OPTIONS
    needs_host_port = False

    def __init__(self) -> None:
        self._workspaces: dict[tuple[str, str], Workspace] = {}

    def preflight(self) -> list[Check]:
        """The leptonai package, credentials, the workspace, its shapes and quota, registry credentials."""
        import lepton_preflight

        return lepton_preflight.checks()

    def check(self, spec: LaunchSpec) -> None:
        """Refuse options and mounts that cannot work. Asks nobody."""
        options.settings(spec)

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        """The endpoint that `start` would create, in the API's own shape, and the names of its secrets."""
        settings = options.settings(spec)
        chosen = settings.resource_shape or f"the one with {spec.num_gpus} GPU(s), chosen when it is started"
        return {
            "endpoint": endpoint.document(spec, settings, settings.resource_shape, settings.node_group),
            "resource_shape": chosen,
            "secrets": endpoint.secret_names(spec),
            "token": f"made when it is started, kept in {tokens.file_of(spec.job_id)}",
        }

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        """Create the secrets and the endpoint that refers to them, keep its token, and find its address."""
        from inference_service import secrets

        settings = options.settings(spec)
        secret_values = secrets.read(spec.secret_env)
        workspace = self._workspace({})
        group = shapes.node_group_id(workspace, settings.node_group)
        shape = shapes.choose(shapes.listed(workspace, group), spec.num_gpus, settings)
        document = endpoint.document(spec, settings, shape, group)
        name = names.endpoint_name(spec.job_id)
        if workspace.endpoint(name) is not None:
            raise _job_id_in_use(spec.job_id)
        try:
            with held_back():
                _create_secrets(workspace, endpoint.secret_names(spec), secret_values)
            report(Progress("starting", f"endpoint {name} on {shape}"))
            with held_back():
                created = _create_endpoint(workspace, spec.job_id, document)
            deployment = _with_address(workspace, name, created, report)
        except _NameTaken as taken:
            raise taken.error from None
        except BaseException:
            with held_back(deliver=False):
                _undo(workspace, spec.job_id)
            raise
        return endpoint.started(deployment, workspace.extras, _auth(spec.job_id))

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        """One question about the endpoint; while it is not ready, two more about why."""
        import lepton_status

        name = _name_of(entry)
        try:
            workspace = self._workspace(entry.extras)
            found = workspace.endpoint(name)
            if found is None:
                return PlatformStatus(State.EXITED, f"the workspace {workspace.id} has no endpoint {name}")
            with errors(workspace):
                return lepton_status.of(workspace, name, found)
        except ToolError as error:
            return PlatformStatus(State.UNKNOWN, error.message)

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        """What Lepton has collected of it, else what its first replica has written."""
        import lepton_logs

        yield from lepton_logs.lines(self._workspace(entry.extras), _name_of(entry), tail, follow)

    def stop(self, entry: ServiceEntry) -> None:
        """Delete the endpoint, wait until it is gone or going, then delete its secrets and the file with its token."""
        workspace, name = self._workspace(entry.extras), _name_of(entry)
        found = workspace.endpoint(name)
        if found is None and entry.platform_job_id not in (None, names.endpoint_name(entry.job_id)):
            raise ToolError(
                "not_an_endpoint",
                f"{entry.platform_job_id}, which the registry names, is no endpoint of the workspace {workspace.id}",
                f"if another tool started it as a job: lep job stop --id {entry.platform_job_id}; then"
                f" python scripts/registry.py remove {entry.job_id}",
            )
        if found is not None:
            _require_ours(found, entry)
            _delete_endpoint(workspace, name)
        _delete_secrets(workspace, entry.job_id)
        tokens.forget(entry.job_id)

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        """The entry with its address, and a token that is valid: one that its starter could not keep is replaced."""
        has_token = bool(entry.extras.get(AUTH_ENV)) or tokens.file_of(entry.job_id).exists()
        if has_token and entry.host_url:
            return entry
        if entry.platform_job_id != names.endpoint_name(entry.job_id):
            # Not started by us: whether it wants a token, and which, is for its owner to register.
            return entry
        workspace, name = self._workspace(entry.extras), _name_of(entry)
        found = workspace.endpoint(name)
        if found is None:
            raise ToolError(
                "service_gone",
                f"the workspace {workspace.id} has no endpoint {name}",
                "python scripts/registry.py reconcile",
            )
        _require_ours(found, entry)
        if not has_token:
            report(Progress("token", f"the token of {name} is not on this machine: setting a new one"))
            with held_back():
                _set_token(workspace, entry.job_id, found)
            entry = replace(entry, extras={**entry.extras, **_auth(entry.job_id)})
        # A service that was found again before Lepton had given it an address has one now.
        return replace(entry, host_url=endpoint.url_of(found) or entry.host_url)

    def discover(self) -> list[StartedService]:
        """The endpoints of our registry in the workspace that is in use."""
        import lepton_status

        workspace = self._workspace({})
        with errors(workspace):
            candidates = [
                each
                for each in workspace.client.deployment.list_all()
                if names.job_id_of_endpoint(endpoint.name_of(each)) and not lepton_status.is_going(each)
            ]
        ours = (_complete(workspace, each) for each in candidates)
        return [
            endpoint.started(each, workspace.extras, _auth(endpoint.marks(each)[names.JOB_ID_ENV]))
            for each in ours
            if each is not None and endpoint.marks(each).get(names.REGISTRY_ENV) == paths.shared_registry_owner()
        ]

    def _workspace(self, extras: Mapping[str, Any]) -> Workspace:
        """The workspace of these extras, or the one in use; connected once for each driver."""
        key = (
            str(extras.get(endpoint.WORKSPACE_FIELD) or ""),
            str(extras.get(endpoint.WORKSPACE_URL_FIELD) or ""),
        )
        if key not in self._workspaces:
            self._workspaces[key] = workspaces.connect(extras)
        return self._workspaces[key]


class _NameTaken(Exception):
    """There is an endpoint of our name already, which this start has not made and must not remove."""

    def __init__(self, error: ToolError) -> None:
        super().__init__(error.message)
        self.error = error


def _auth(job_id: str) -> dict[str, str]:
    return {AUTH_FILE: str(tokens.file_of(job_id))}


def _name_of(entry: ServiceEntry) -> str:
    return entry.platform_job_id or names.endpoint_name(entry.job_id)


def _create_secrets(workspace: Workspace, secret_names: Mapping[str, str], values: Mapping[str, str]) -> None:
    if not secret_names:
        return
    from leptonai.api.v2.types.common import LeptonVisibility
    from leptonai.api.v2.types.secret import SecretItem

    with errors(workspace):
        workspace.client.secret.create(
            [
                SecretItem(name=name, value=values[variable], visibility=LeptonVisibility.PRIVATE)
                for variable, name in secret_names.items()
            ]
        )


def _create_endpoint(workspace: Workspace, job_id: str, document: Mapping[str, Any]) -> Any | None:
    """Create the endpoint and keep its token; what Lepton tells of it, if anything.

    A create whose answer got lost may have happened all the same: then the endpoint is looked for.
    """
    from leptonai.api.v2.types.deployment import LeptonDeployment, TokenVar

    wanted = LeptonDeployment(**document)
    own = None if workspace.generates_tokens else tokens.generate()
    if own is not None:
        # Without a token such a workspace lets everybody in. Kept before it is used, so that it cannot be lost.
        wanted.spec.api_tokens = [TokenVar(value=own)]
        tokens.save(job_id, own)
    try:
        with errors(workspace):
            created = workspace.client.deployment.create_with_response(wanted, tolerate_legacy_response=own is not None)
    except ToolError as error:
        status = workspaces.refused_status(error.__cause__) if error.__cause__ else None
        if status == _CONFLICT:
            tokens.forget(job_id)
            raise _NameTaken(_job_id_in_use(job_id)) from error
        if status is not None:
            raise
        found = workspace.endpoint(names.endpoint_name(job_id))
        if found is None:
            raise
        created = found
    if own is None:
        _set_token(workspace, job_id, created)
    return None if created is True else created


def _set_token(workspace: Workspace, job_id: str, deployment: Any) -> None:
    """Keep the token that Lepton tells in this answer; where it tells none, set one of ours."""
    from leptonai.api.v2.types.deployment import LeptonDeployment, LeptonDeploymentUserSpec, TokenVar

    told = tokens.of(deployment)
    if told is not None:
        tokens.save(job_id, told)
        return
    own = tokens.generate()
    change = LeptonDeployment(spec=LeptonDeploymentUserSpec(api_tokens=[TokenVar(value=own)]))
    with errors(workspace):
        tokens.replace(job_id, own, lambda: workspace.client.deployment.update(names.endpoint_name(job_id), change))


def _with_address(workspace: Workspace, name: str, created: Any | None, report: Report) -> Any:
    """The endpoint once Lepton has given it an address, which the answer to the create may already have."""
    import lepton_status

    deadline = time.monotonic() + _ADDRESS_SECONDS
    pause = _FIRST_PAUSE_SECONDS
    found = created
    while True:
        found = found or workspace.endpoint(name)
        if found is None:
            raise ToolError(
                "lepton_endpoint_gone", f"the endpoint {name} was deleted while it was started", "start it again"
            )
        if endpoint.url_of(found):
            return found
        with errors(workspace):
            status = lepton_status.of(workspace, name, found)
        if status.dead:
            raise ToolError(
                "lepton_start_failed", f"the endpoint {name}: {status.reason}", "correct that and start it again"
            )
        if time.monotonic() > deadline:
            raise ToolError(
                "lepton_no_address",
                f"Lepton gave the endpoint {name} no address within {_ADDRESS_SECONDS:g} s; it is {status.reason}",
                "start it again later",
            )
        report(Progress("starting", f"waiting for the endpoint's address: {status.reason}"))
        time.sleep(pause)
        pause, found = min(2 * pause, _LONGEST_PAUSE_SECONDS), None


def _undo(workspace: Workspace, job_id: str) -> None:
    """Take back what a start has made. What cannot be is left to the caller's stop(), which says so."""
    try:
        _delete_endpoint(workspace, names.endpoint_name(job_id))
        _delete_secrets(workspace, job_id)
        tokens.forget(job_id)
    except ToolError:
        return


def _delete_endpoint(workspace: Workspace, name: str) -> None:
    import lepton_status

    with errors(workspace):
        existing(lambda: workspace.client.deployment.delete(name))
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while (found := workspace.endpoint(name)) is not None and lepton_status.phase_of(found) != "Deleting":
        if time.monotonic() > deadline:
            raise ToolError(
                "lepton_not_deleted",
                f"the endpoint {name} is still there, {lepton_status.phase_of(found).lower()}",
                f"lep endpoint remove -n {name}",
            )
        time.sleep(_LONGEST_PAUSE_SECONDS / 4)


def _delete_secrets(workspace: Workspace, job_id: str) -> None:
    prefix = names.secret_prefix(job_id)
    with errors(workspace):
        for item in workspace.client.secret.list_all():
            if item.name.startswith(prefix):
                existing(lambda name=item.name: workspace.client.secret.delete(name))  # type: ignore[misc]


def _complete(workspace: Workspace, listed: Any) -> Any | None:
    """The endpoint with its marks: a listing may be shorter than what is listed. None when it is gone or not ours."""
    if names.JOB_ID_ENV in endpoint.marks(listed):
        return listed
    found = workspace.endpoint(endpoint.name_of(listed))
    return found if found is not None and names.JOB_ID_ENV in endpoint.marks(found) else None


def _require_ours(deployment: Any, entry: ServiceEntry) -> None:
    found = endpoint.marks(deployment)
    job_id = found.get(names.JOB_ID_ENV)
    if job_id is None and entry.platform_job_id:
        return  # another tool's: its entry in the registry names it
    if job_id != entry.job_id or (
        entry.platform_job_id is None and found.get(names.REGISTRY_ENV) != paths.shared_registry_owner()
    ):
        raise BadInput(
            "endpoint_of_another",
            f"the endpoint {endpoint.name_of(deployment)} belongs to another registry: {found.get(names.REGISTRY_ENV)}",
            "stop it there",
        )


def _job_id_in_use(job_id: str) -> ToolError:
    return BadInput(
        "job_id_in_use",
        f"there is an endpoint {names.endpoint_name(job_id)} already",
        f"stop it: python scripts/stop_service.py --job-id {job_id}; or build a launch spec with a new job_id",
    )

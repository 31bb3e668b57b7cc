"""The connection to one Lepton workspace through the official client, and its errors in our words.

Which generation of the API a workspace speaks the client finds out by asking it. When that question fails the client
takes the old one for granted, for the rest of the process: on a new workspace every service would look gone. So here a
workspace that cannot be asked is an error, and the question is asked again the next time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lepton_endpoint import WORKSPACE_FIELD, WORKSPACE_URL_FIELD

from inference_service.errors import ToolError

_TIMEOUT_SECONDS = 60
_LONGEST_QUOTE = 400
LOGIN = "export LEPTON_WORKSPACE_ID=… LEPTON_WORKSPACE_TOKEN=… (or: lep login)"


def package() -> Any:
    """The package `leptonai`, imported.

    Raises:
        ToolError: it is not installed.
    """
    try:
        import leptonai
        import leptonai.api.v2.client
    except ImportError as error:
        raise ToolError(
            "missing_dependency",
            f"the Python package leptonai cannot be used: {error}",
            'pip install "leptonai>=0.47" (extra: lepton)',
        ) from error
    return leptonai


@dataclass(frozen=True)
class Workspace:
    """One workspace that was reached. `info` is what it said of itself then."""

    id: str
    url: str
    client: Any
    info: Any

    @property
    def extras(self) -> dict[str, str]:
        """The registry's fields that lead back to this workspace."""
        return {WORKSPACE_FIELD: self.id, WORKSPACE_URL_FIELD: self.url}

    @property
    def generates_tokens(self) -> bool:
        """Whether an endpoint that is created without a token gets one; without, everybody could use it."""
        features = self.info.features
        return features is not None and features.enable_secure_endpoint_defaults is True

    @property
    def new_routes(self) -> bool:
        """Whether it speaks the newer generation of the API."""
        return bool(self.client.new_deployment_api_enabled)

    def endpoint(self, name: str) -> Any | None:
        """The endpoint as it is now, None where there is none of that name.

        Raises:
            ToolError: the workspace cannot be asked.
        """
        with errors(self):
            return existing(lambda: self.client.deployment.get(name))


@dataclass(frozen=True)
class Credentials:
    """Where a workspace is and how one gets in. `token` is never shown."""

    workspace_id: str
    token: str
    url: str | None
    source: str


def credentials(extras: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Credentials:
    """The credentials of the workspace that a registry entry's extras name, or of the one that is in use.

    The environment comes first, then what `lep login` has kept.

    Raises:
        ToolError: there are none for that workspace.
    """
    package()
    from leptonai.api.v2.workspace_record import WorkspaceRecord

    named, _, token_in_id = environ.get("LEPTON_WORKSPACE_ID", "").partition(":")
    current = WorkspaceRecord.current()
    wanted = str(extras.get(WORKSPACE_FIELD) or named or (current.id_ if current else ""))
    if not wanted:
        raise ToolError("lepton_no_workspace", "no Lepton workspace is chosen: LEPTON_WORKSPACE_ID is not set", LOGIN)
    record = WorkspaceRecord.get(wanted) if WorkspaceRecord.has(wanted) else None
    url = extras.get(WORKSPACE_URL_FIELD) or (record.url if record else None)
    if wanted == named:
        url = environ.get("LEPTON_WORKSPACE_URL") or url
        if token := token_in_id or environ.get("LEPTON_WORKSPACE_TOKEN"):
            source = "LEPTON_WORKSPACE_ID" if token_in_id else "LEPTON_WORKSPACE_TOKEN"
            return Credentials(wanted, token, url, source)
    if record is not None and record.auth_token:
        return Credentials(wanted, record.auth_token, url, "lep login")
    raise ToolError(
        "lepton_no_token",
        f"there is no token for the Lepton workspace {wanted}",
        f"export LEPTON_WORKSPACE_ID={wanted} LEPTON_WORKSPACE_TOKEN=… (or: lep login)",
    )


def connect(extras: Mapping[str, Any]) -> Workspace:
    """The workspace that a registry entry's extras name, or the one that is in use.

    Raises:
        ToolError: there are no credentials for it, or it does not let us in, or it cannot be reached.
    """
    found = credentials(extras)
    from leptonai.api.v2.client import APIClient, reset_new_deployment_api_flag_cache

    client = APIClient(found.workspace_id, found.token, found.url)
    # The client waits two minutes for an answer by default, which no poller can.
    client._timeout = _TIMEOUT_SECONDS
    workspace = Workspace(found.workspace_id, client.url, client, None)
    with errors(workspace):
        try:
            info = client.deployment_feature_snapshot()
        except BaseException:
            reset_new_deployment_api_flag_cache(client.url)
            raise
    return Workspace(found.workspace_id, client.url, client, info)


def existing(ask: Callable[[], Any]) -> Any | None:
    """What the call gives, None where Lepton says that there is no such thing."""
    from leptonai.api.v2.api_resource import ClientError

    try:
        return ask()
    except ClientError as error:
        if error.response.status_code == 404:
            return None
        raise


def refused_status(error: BaseException) -> int | None:
    """The HTTP status (400 to 499) with which Lepton refused a call, so that nothing came of it; else None."""
    from leptonai.api.v2.api_resource import ClientError

    return int(error.response.status_code) if isinstance(error, ClientError) else None


@contextlib.contextmanager
def errors(workspace: Workspace) -> Iterator[None]:
    """Whatever goes wrong in the client during the block is raised as a ToolError that says what to do."""
    import requests
    from leptonai.api.v2.api_resource import ClientError, ServerError
    from leptonai.api.v2.utils import WorkspaceError

    try:
        yield
    except (ClientError, ServerError) as error:
        raise _answered(error.response, workspace) from error
    except requests.RequestException as error:
        raise ToolError(
            "lepton_unreachable",
            f"the Lepton workspace {workspace.id} cannot be reached at {workspace.url}: {_in_words(error)}",
            "check the network and LEPTON_WORKSPACE_URL, then run this again",
        ) from error
    except WorkspaceError as error:
        raise _no_entry(error, workspace) from None
    except RuntimeError as error:
        raise ToolError(
            "lepton_error",
            f"Lepton's answer cannot be used: {_short(str(error))}",
            "run this again; pip install -U leptonai",
        ) from error


def _no_entry(error: Exception, workspace: Workspace) -> ToolError:
    # Its text has the ends of the token in it: only its own sentence is shown.
    said = str(error.args[0]) if error.args else type(error).__name__
    kind = type(error).__name__
    if kind == "WorkspaceUnauthorizedError":
        return _unauthorized(workspace)
    fixes = {
        "WorkspaceForbiddenError": "ask the workspace's owner for access",
        "WorkspaceNotFoundError": "correct LEPTON_WORKSPACE_ID (and LEPTON_WORKSPACE_URL, if set)",
    }
    return ToolError("lepton_workspace", f"{workspace.id}: {said}", fixes.get(kind, "run this again"))


def _unauthorized(workspace: Workspace) -> ToolError:
    return ToolError(
        "lepton_unauthorized",
        f"the Lepton workspace {workspace.id} does not take the token",
        "make a new one (dashboard, Settings, Tokens), then: export LEPTON_WORKSPACE_TOKEN=…",
    )


def _answered(response: Any, workspace: Workspace) -> ToolError:
    status, said = response.status_code, _said(response)
    if status == 401:
        return _unauthorized(workspace)
    if status == 403:
        return ToolError("lepton_forbidden", f"Lepton forbids that: {said}", "ask the workspace's owner for the right")
    if status == 429:
        return ToolError("lepton_too_many_requests", f"Lepton asks for patience: {said}", "run this again in a minute")
    if status >= 500:
        return ToolError("lepton_error", f"Lepton failed (HTTP {status}): {said}", "run this again")
    return ToolError("lepton_refused", f"Lepton refused that (HTTP {status}): {said}", "correct what it names")


def _said(response: Any) -> str:
    try:
        answer = json.loads(response.text)
    except ValueError:
        return _short(response.text)
    message = answer.get("message") if isinstance(answer, dict) else None
    return _short(str(message or response.text))


def _in_words(error: Exception) -> str:
    text = str(error)
    for words in ("Connection refused", "Name or service not known", "timed out", "Connection reset by peer"):
        if words in text:
            return words.lower()
    return _short(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"

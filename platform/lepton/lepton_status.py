"""What Lepton says of an endpoint, read as the service in it.

The older API explains what an endpoint waits for (readiness issues) and how its containers ended (terminations); the
newer one has neither, and its events have to do.
"""

from __future__ import annotations

from typing import Any

from lepton_workspace import Workspace

from inference_service.contracts import PlatformStatus, State

_GONE = ("Deleting", "Stopping", "Stopped")
_RUNNING = ("Ready", "Updating", "Scaling", "Migrating")
# What waiting does not mend: the image, the command or the mounts are wrong.
_HOPELESS = ("ConfigError",)
_QUIET = ("Ready", "InProgress", "Unknown")
# Lepton starts what ended again: once may be the machine's fault, twice is the service's.
_TERMINATIONS_OF_A_LOOP = 2
_MEANINGS = {
    "NoCapacity": "no machine of that shape is free",
    "Queueing": "it waits in the queue",
    "ConfigError": "its configuration cannot run",
    "SystemError": "Lepton has a problem",
    "RequireReadinessApproval": "somebody has to approve that it is ready",
    "InProgress": "it is being started",
}


def phase_of(deployment: Any) -> str:
    """The endpoint's state in Lepton's words. Old clients' `state` hides that it is stopped; `phase` tells."""
    status = deployment.status
    if status is None:
        return ""
    return str((status.phase or status.state).value)


def is_going(deployment: Any) -> bool:
    """Whether the endpoint is being removed or stopped."""
    return phase_of(deployment) in _GONE


def of(workspace: Workspace, name: str, deployment: Any) -> PlatformStatus:
    """The state of the service in this endpoint. Lepton is asked why only when it is not ready.

    Raises:
        ToolError: it cannot be asked.
    """
    phase = phase_of(deployment)
    if phase in _GONE:
        return PlatformStatus(State.EXITED, f"the endpoint is {phase.lower()}")
    if phase in _RUNNING:
        return PlatformStatus(State.RUNNING, "" if phase == "Ready" else phase.lower())
    issues = _issues(workspace, name)
    told = f": {'; '.join(_in_words(reason, message) for reason, message in issues)}" if issues else ""
    if phase == "Error":
        return PlatformStatus(State.FAILED, f"the endpoint has failed{told}")
    hopeless = [issue for issue in issues if issue[0] in _HOPELESS]
    if hopeless:
        return PlatformStatus(State.FAILED, "; ".join(_in_words(*issue) for issue in hopeless))
    ended = _terminations(workspace, name)
    if ended:
        last = max(ended, key=lambda each: each.finished_at)
        how = f"its container ended {len(ended)} time(s), the last with exit code {last.exit_code} ({last.reason})"
        state = State.FAILED if len(ended) >= _TERMINATIONS_OF_A_LOOP else State.PENDING
        return PlatformStatus(state, f"{how}{told}")
    return PlatformStatus(State.PENDING, f"{phase.lower() or 'of unknown state'}{told}")


def _issues(workspace: Workspace, name: str) -> list[tuple[str, str]]:
    """Reason and message of each thing that the endpoint waits for."""
    if workspace.new_routes:
        events = workspace.client.deployment.get_events(name)
        return [(event.reason, "") for event in _last_warnings(events)]
    replicas = workspace.client.deployment.get_readiness(name).root
    return list(
        dict.fromkeys(
            (issue.reason.value, issue.message)
            for issues in replicas.values()
            for issue in issues
            if issue.message or issue.reason.value not in _QUIET
        )
    )


def _last_warnings(events: list[Any]) -> list[Any]:
    warnings = sorted(
        (event for event in events if event.type_ == "Warning"), key=lambda event: event.last_observed_time
    )
    return warnings[-1:]


def _terminations(workspace: Workspace, name: str) -> list[Any]:
    if workspace.new_routes:
        return []
    replicas = workspace.client.deployment.get_termination(name).root
    return [ended for each in replicas.values() for ended in each]


def _in_words(reason: str, message: str) -> str:
    meaning = _MEANINGS.get(reason)
    named = f"{meaning} ({reason})" if meaning else reason
    return f"{named}: {message}" if message else named

"""Which services nobody needs any more: those whose time is up, those that are idle (stop_service.py --expired --idle).

Made for cron: it asks nobody, and whatever it cannot be sure of stays. Several at once are one too many but no harm,
because each service is judged anew right before it is stopped, and stopping one twice is stopping it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from inference_service import idleness, registry_entries
from inference_service.contracts import ServiceEntry
from inference_service.errors import BadInput
from inference_service.registry import STARTING, Registry, reservation_is_dead

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """The seconds of a duration like 90s, 30m, 1.5h or 2d.

    Raises:
        BadInput: it is none, or of no length.
    """
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise BadInput(
            "bad_duration", f"{text!r} is no duration", "give a number with s, m, h or d behind it: --idle 30m"
        )
    return seconds


@dataclass(frozen=True)
class Upkeep:
    """What is to be stopped: with `expired` what is past its stop_after, with `idle_seconds` what is idle, or both."""

    registry: Registry
    expired: bool
    idle_seconds: float | None

    def reason_to_keep(self, entry: ServiceEntry) -> str:
        """Why this service is not to be stopped now, or nothing; for lifecycle.stop. Takes up to ten seconds.

        Raises:
            ToolError: the registry cannot be read.
        """
        now = self.registry.read().services.get(entry.job_id)
        if now is None:
            return "another program has stopped it meanwhile"
        if now.status == STARTING and not reservation_is_dead(now):
            return f"process {(now.reserved_by or {}).get('pid')} is still starting it"
        reasons = []
        if self.expired:
            # Cron comes again: a request that is being answered gets its answer first.
            reasons.append(_time_left(now) or idleness.in_use_now(now))
        if self.idle_seconds is not None and all(reasons):
            reasons.append(idleness.reason_to_keep(now, self.idle_seconds, self.registry))
        return "; ".join(reasons) if all(reasons) else ""


def _time_left(entry: ServiceEntry) -> str:
    """Why its time is not up, or nothing."""
    if entry.stop_after is None:
        return "it was started without --max-hours"
    moment = registry_entries.utc(entry.stop_after)
    if moment is None:
        return f"its stop_after is no moment: {entry.stop_after!r}"
    deadline = datetime.fromisoformat(moment)
    if deadline <= datetime.now(timezone.utc):
        return ""
    return f"it may run until {deadline.isoformat(timespec='seconds')}"

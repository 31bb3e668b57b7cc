"""What a service's readiness and liveness answers mean. The words they use are data (request.yaml, `readiness`).

Two body shapes are in the field: `{"error": {"type", "message"}}` and `{"reason", "message"}`; statuses 202 and 503
both say not ready. What counts is the word, not the status: only that tells wait from never.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeGuard

from inference_service.references import Readiness


class Verdict(str, Enum):
    """READY and FAILED are final, WAIT means ask again. FOREIGN: another service answers in the place of ours."""

    READY = "ready"
    WAIT = "wait"
    FAILED = "failed"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Seen:
    """One answer, understood. `word` is the server's own word for its state, `job_id` the one it named, if any."""

    verdict: Verdict
    word: str
    message: str
    http_status: int | None = None
    job_id: str | None = None

    def document(self) -> dict[str, Any]:
        """As JSON, for the error that quotes what was last seen."""
        return {"state": self.word, "message": self.message, "http_status": self.http_status}


@dataclass(frozen=True)
class Loading:
    """What liveness says of the loading: its stage, in words, and the steps that remain."""

    stage: str
    message: str
    remaining_steps: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Life:
    """What liveness says of a service in use: whose it is, whether its model is loaded, how long it has been idle."""

    job_id: str | None
    loaded: bool
    idle_minutes: float | None


def understand(http_status: int, body: bytes, job_id: str, words: Readiness) -> Seen:
    """What this answer of the readiness endpoint says of the service `job_id`.

    Ready is status 200 with a JSON object that names no other job_id and no reason to wait: a stranger's web page on
    our port is not readiness, whatever its status.
    """
    document = _object(body)
    if document is None:
        return Seen(Verdict.WAIT, "no_json", f"HTTP {http_status} with a body that is no JSON object", http_status)
    named = document.get("job_id")
    theirs = named if isinstance(named, str) and named else None
    message = _message(document)
    if theirs is not None and theirs != job_id:
        return Seen(Verdict.FOREIGN, "foreign", f"the service there is {theirs}", http_status, theirs)
    word = _word(document, words)
    if word in words.failure:
        return Seen(Verdict.FAILED, word, message or word, http_status, theirs)
    if http_status == 200 and not word and document.get("status") != "not_ready":
        return Seen(Verdict.READY, "ready", message, http_status, theirs)
    return Seen(Verdict.WAIT, word or f"http_{http_status}", message or f"HTTP {http_status}", http_status, theirs)


def loading(body: bytes) -> Loading | None:
    """The `progress` of a liveness answer; None where there is none."""
    document = _object(body)
    progress = document.get("progress") if document else None
    if not isinstance(progress, Mapping) or not isinstance(progress.get("stage"), str):
        return None
    steps, details = progress.get("remaining_steps"), progress.get("details")
    return Loading(
        stage=progress["stage"],
        message=str(progress.get("message") or ""),
        remaining_steps=tuple(str(step) for step in steps) if isinstance(steps, list) else (),
        details=details if isinstance(details, Mapping) else {},
    )


def life(body: bytes) -> Life | None:
    """The rest of a liveness answer; None where it is none."""
    document = _object(body)
    if document is None:
        return None
    named, idle = document.get("job_id"), document.get("idle_time_minutes")
    busy_loading = document.get("model_loading") or document.get("server_initializing")
    return Life(
        job_id=named if isinstance(named, str) and named else None,
        loaded=document.get("model_loaded") is True and not busy_loading,
        idle_minutes=float(idle) if _is_minutes(idle) else None,
    )


def _is_minutes(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, Mapping) else None


def _word(document: Mapping[str, Any], words: Readiness) -> str:
    for path in words.type_fields:
        value: Any = document
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value:
            return value
    return ""


def _message(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    for holder in (error, document):
        if isinstance(holder, Mapping) and isinstance(holder.get("message"), str):
            return str(holder["message"])
    return error if isinstance(error, str) else ""

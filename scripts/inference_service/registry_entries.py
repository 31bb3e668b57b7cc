"""The registry's format: between the JSON that the seed's snippets read and write (seed 4.3) and `ServiceEntry`.

The content is an object whose keys are job_ids, and `latest`. Our own fields lie flat beside the seed's. What we do not
understand, a key in an entry or an entry of the whole, is nobody's to drop: it is carried along as it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any, TypeGuard

from inference_service.contracts import ServiceEntry

LATEST = "latest"

_FIELDS = tuple(field.name for field in fields(ServiceEntry) if field.name not in ("job_id", "extras"))
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_LONGEST_NUMBER = 20
_OUR_MOMENT_LENGTH = len("2026-01-01T00:00:00.000000+00:00")
_LONG_AGO = datetime.min.replace(tzinfo=timezone.utc)


def is_service(value: Any, job_id: str) -> TypeGuard[Mapping[str, Any]]:
    """Whether this member of the file describes a service: the least that seed 6.0 reads of one is there."""
    return (
        job_id != LATEST
        and isinstance(value, Mapping)
        and isinstance(value.get("network_arch"), str)
        and isinstance(value.get("host_url"), str)
    )


def services(state: Mapping[str, Any]) -> dict[str, ServiceEntry]:
    """The services of the file by job_id, in its order."""
    return {job_id: from_json(job_id, value) for job_id, value in state.items() if is_service(value, job_id)}


def from_json(job_id: str, value: Mapping[str, Any]) -> ServiceEntry:
    """The entry of a member that `is_service`. What another tool left out or wrote as another type has its default."""
    reserved_by, num_gpus = value.get("reserved_by"), _integer(value.get("num_gpus"))
    return ServiceEntry(
        job_id=job_id,
        network_arch=value["network_arch"],
        platform=_text(value.get("platform")) or "",
        host_url=value["host_url"],
        status=_text(value.get("status")) or "running",
        image=_text(value.get("image")) or "",
        model_path=_text(value.get("model_path")) or "",
        num_gpus=0 if num_gpus is None else num_gpus,
        platform_job_id=_text(value.get("platform_job_id")),
        host_port=_integer(value.get("host_port")),
        docker_url=_text(value.get("docker_url")),
        started_at=_text(value.get("started_at")) or "",
        stop_after=_text(value.get("stop_after")),
        reserved_by=reserved_by if isinstance(reserved_by, Mapping) else None,
        extras=unknown_keys(value),
    )


def unknown_keys(value: Any) -> dict[str, Any]:
    """What a member of the file says beyond the fields of ours."""
    return {key: item for key, item in value.items() if key not in _FIELDS} if isinstance(value, Mapping) else {}


def to_json(entry: ServiceEntry) -> dict[str, Any]:
    """The entry as the file has it: the seed's fields, ours, then its extras (which cannot replace a field)."""
    document = {name: getattr(entry, name) for name in _FIELDS}
    if entry.reserved_by is None:
        del document["reserved_by"]
    return {**document, **{key: value for key, value in entry.extras.items() if key not in _FIELDS}}


def latest(state: Mapping[str, Any]) -> str | None:
    """The job_id of the running service that was started last; None where none runs.

    Where two started at the same moment, or their moments cannot be read, the file's own `latest` decides.
    """
    started = {
        job_id: _parsed(value.get("started_at")) or _LONG_AGO
        for job_id, value in state.items()
        if is_service(value, job_id) and value.get("status", "running") == "running"
    }
    noted = state.get(LATEST)
    return max(started, key=lambda job_id: (started[job_id], job_id == noted)) if started else None


def held_ports(state: Mapping[str, Any]) -> dict[int, str]:
    """The ports that members of the file hold, each with the job_id of its holder."""
    held = {}
    for job_id, value in state.items():
        port = _integer(value.get("host_port")) if isinstance(value, Mapping) else None
        if port is not None:
            held[port] = job_id
    return held


def utc(moment: str | None) -> str | None:
    """An ISO 8601 moment as ours are written: UTC with an offset, to the microsecond; None where it cannot be read.

    Docker writes nanoseconds and `Z`, which Python reads from 3.11 on only. A moment without an offset is local time.
    """
    parsed = _parsed(moment)
    return parsed.isoformat() if parsed else None


def now() -> str:
    """This moment, as `started_at` has it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _parsed(moment: Any) -> datetime | None:
    if not isinstance(moment, str):
        return None
    if len(moment) == _OUR_MOMENT_LENGTH and moment.endswith("+00:00"):
        # As we write them: a large registry is full of these, and this is ten times faster.
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(moment)
    match = _MOMENT.fullmatch(moment)
    if match is None:
        return None
    seconds, fraction, offset = match.groups()
    offset = {None: "", "Z": "+00:00"}.get(offset, offset)
    try:
        return datetime.fromisoformat(f"{seconds}.{(fraction or '')[:6]:0<6}{offset}").astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def _text(value: Any) -> str | None:
    # Slurm's job ids are numbers, and another tool may have written one as such.
    return (
        str(value)
        if isinstance(value, int) and not isinstance(value, bool)
        else value
        if isinstance(value, str)
        else None
    )


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < _LONGEST_NUMBER:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None

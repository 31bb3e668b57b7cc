"""Whether nobody has used a service for a while. In doubt it is in use: what is idle is about to be stopped.

The service's own clock is asked, and it is not enough: a TAO server (nvidia-tao-core 7.3.0) counts from the moment a
request arrives, so that one which computes for an hour looks idle for an hour. So nobody may be connected to its port
on this machine, and no request to it may be without an outcome in the request log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

from inference_service import http_session, output, paths, platforms, reaching, references, short_answers
from inference_service.contracts import Progress, ServiceEntry
from inference_service.errors import ToolError
from inference_service.readiness_answers import Life, Verdict, life, understand
from inference_service.registry import RUNNING, Registry

_ANSWER_SECONDS = 5.0
# A row without an outcome that is older is what a killed sender left.
_LONGEST_REQUEST = timedelta(hours=24)
# A question that somebody asks just now, us included, is over by then; a request in progress is not.
_CONNECTION_SECONDS = 0.5
_LOOK_EVERY_SECONDS = 0.05


def reason_to_keep(entry: ServiceEntry, idle_seconds: float, registry: Registry) -> str:
    """Why the service cannot be called idle for so long, or nothing. A dead tunnel to it is opened again to ask."""
    if entry.status != RUNNING:
        return f"it is {entry.status}"
    try:
        entry = reaching.reachable(entry, platforms.load(entry.platform), _say, registry)
        return next(_doubts(entry, idle_seconds), "")
    except ToolError as error:
        return error.message


def in_use_now(entry: ServiceEntry) -> str:
    """Who would be cut off if the service were stopped this moment, as far as this machine sees it, or nothing."""
    return f"somebody is connected to {entry.host_url}" if entry.status == RUNNING and _connected(entry) else ""


def ask(entry: ServiceEntry, seconds: float) -> Life | str:
    """What its liveness says, or in words why that is not known, another service in its place included.

    Raises:
        ToolError: the entry's host_url is no URL, or its token cannot be read.
    """
    with http_session.session_for(entry) as session:
        answer = short_answers.get(session, entry, references.load().wire.liveness, seconds)
    if isinstance(answer, str):
        return f"it does not answer: {answer}"
    found = life(answer[1]) if answer[0] == 200 else None
    if found is None:
        return f"its liveness is HTTP {answer[0]} with nothing to read"
    if found.job_id != entry.job_id:
        return f"the service that answers at {entry.host_url} is {found.job_id or 'nobody that says its job_id'}"
    return found


def _doubts(entry: ServiceEntry, idle_seconds: float) -> Iterator[str]:
    yield from _not_ready(entry)
    found = ask(entry, _ANSWER_SECONDS)
    if isinstance(found, str):
        yield found
    elif not found.loaded:
        yield "its model is not loaded"
    elif found.idle_minutes is None:
        yield "it does not say how long it has been idle"
    elif found.idle_minutes * 60 < idle_seconds:
        yield f"its last request was {found.idle_minutes:g} min ago"
    yield from _request_without_outcome(entry)
    if used := in_use_now(entry):
        yield used


def _not_ready(entry: ServiceEntry) -> Iterator[str]:
    wire = references.load().wire
    with http_session.session_for(entry) as session:
        answer = short_answers.get(session, entry, wire.readiness_path, _ANSWER_SECONDS)
    if isinstance(answer, str):
        yield f"it does not answer: {answer}"
        return
    seen = understand(*answer, entry.job_id, wire.readiness)
    if seen.verdict is not Verdict.READY:
        yield f"it is not ready: {seen.word}: {seen.message}"


def _request_without_outcome(entry: ServiceEntry) -> Iterator[str]:
    from inference_service.request_log import under_way

    since = datetime.now(timezone.utc) - _LONGEST_REQUEST
    request = under_way.newest(paths.request_log_file(), entry.job_id, since)
    if request is not None:
        yield f"request {request['request_id']} of {request['caller']}, sent {request['time']}, has no answer yet"


def _connected(entry: ServiceEntry) -> bool:
    """Whether a connection to its port on this machine stays open. Where that cannot be seen: no."""
    if not http_session.is_loopback(entry.host_url):
        return False
    port = urlsplit(entry.host_url).port
    deadline = time.monotonic() + _CONNECTION_SECONDS
    while _has_connection(port):
        if time.monotonic() > deadline:
            return True
        time.sleep(_LOOK_EVERY_SECONDS)
    return False


def _has_connection(port: int | None) -> bool:
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return False
    return any(
        connection.status == psutil.CONN_ESTABLISHED and _is_with(port, connection.laddr, connection.raddr)
        for connection in connections
    )


def _is_with(port: int | None, here: tuple[object, ...], there: tuple[object, ...]) -> bool:
    # Either end of it: the service's, or that of a caller on this machine, which a container's service does not show.
    is_caller = len(there) == 2 and there[1] == port and str(there[0]).removeprefix("::ffff:") in ("127.0.0.1", "::1")
    return is_caller or (len(here) == 2 and here[1] == port)


def _say(progress: Progress) -> None:
    output.note(f"{progress.stage}: {progress.message}")

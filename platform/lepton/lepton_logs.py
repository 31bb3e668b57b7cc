"""An endpoint's log. What Lepton has collected has the containers that ended, too; a replica's own stream goes on.

Only the second can be followed, and only the second is there where log collection is off. It never ends by itself:
without --follow it is read until it has been quiet for a moment.
"""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from lepton_workspace import Workspace, errors, existing

from inference_service.errors import ToolError

_LOOK_BACK_NANOSECONDS = 7 * 24 * 3600 * 10**9
_MOST_LINES_AT_ONCE = 10_000
_QUIET_SECONDS = 2


def lines(workspace: Workspace, name: str, tail: int | None, follow: bool) -> Iterator[str]:
    """The log's lines without line ends, the last `tail` of them (None: all that Lepton gives); then what comes.

    Raises:
        ToolError: Lepton cannot be asked, or has no log of it.
    """
    if not follow and (collected := _collected(workspace, name, tail)):
        yield from collected
        return
    replica = _replica(workspace, name)
    if follow:
        # The stream begins with what was written before.
        yield from _split(_stream(workspace, name, replica, None))
        return
    kept: Iterable[str] = _split(_stream(workspace, name, replica, _QUIET_SECONDS))
    yield from kept if tail is None else deque(kept, maxlen=tail)


def _collected(workspace: Workspace, name: str, tail: int | None) -> list[str]:
    now = time.time_ns()
    limit = _MOST_LINES_AT_ONCE if tail is None else min(tail, _MOST_LINES_AT_ONCE)
    if limit == 0:
        return []
    try:
        with errors(workspace):
            # The end is exclusive, and the clocks of two machines differ.
            answer = workspace.client.log.get_log(
                name_or_deployment=name, start=now - _LOOK_BACK_NANOSECONDS, end=now + 60 * 10**9, limit=limit
            )
    except ToolError:
        # Collection may be off, or not for this user: then the replica is asked, and says what is wrong if all is.
        return []
    result = ((answer.get("data") or {}).get("result") or []) if isinstance(answer, dict) else []
    entries = [(int(value[0]), str(value[1])) for stream in result for value in stream.get("values") or ()]
    return [line.rstrip("\r\n") for _moment, line in sorted(entries, key=lambda entry: entry[0])]


def _replica(workspace: Workspace, name: str) -> str:
    with errors(workspace):
        replicas = existing(lambda: workspace.client.deployment.get_replicas(name))
    if replicas is None:
        raise ToolError("no_log", f"there is no endpoint {name}, and so no log", "python scripts/registry.py reconcile")
    if not replicas:
        raise ToolError("no_log", f"the endpoint {name} has no replica yet, and so no log", "wait until it is started")
    return str(replicas[0].metadata.id_ or replicas[0].id_)


def _stream(workspace: Workspace, name: str, replica: str, quiet_seconds: int | None) -> Iterator[str]:
    """The chunks of a replica's log; until it is quiet for so long, where that is given."""
    import requests

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with errors(workspace):
        chunks = _raw_chunks(workspace, name, replica, quiet_seconds)
        try:
            for chunk in chunks:
                yield decoder.decode(chunk)
        except (requests.Timeout, requests.ConnectionError):
            # How requests says that nothing came for that long; a connection that ends is the end of the log.
            if quiet_seconds is None:
                raise


def _raw_chunks(workspace: Workspace, name: str, replica: str, timeout: int | None) -> Iterator[bytes]:
    # The client's own get_log() decodes each chunk for itself, and dies of a character that is cut in two.
    client = workspace.client
    family = "endpoints" if workspace.new_routes else "deployments"
    path = f"/{family}/{name}/replicas/{replica}/log"
    response: Any = client._get(path, stream=True, timeout=timeout)
    with response:
        if not response.ok:
            raise RuntimeError(f"HTTP {response.status_code} for the log of {replica}: {response.text}")
        yield from response.iter_content(chunk_size=None)


def _split(chunks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        for line in whole:
            yield line.rstrip("\r")
    if rest:
        yield rest.rstrip("\r")

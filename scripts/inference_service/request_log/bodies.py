"""Bodies of requests and answers, where somebody asks for them to be kept: cut to a size, without secrets.

They are for looking into a problem, so they are written beside the answers, by a thread of their own, and are what is
given up first: a body that cannot be stored in time is dropped and counted. The rows of `requests` never wait for them.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from inference_service import output, sql
from inference_service.request_log.redaction import without_secrets

MOST_BYTES = 64 << 10
"""Of each body; what is beyond it is not kept."""

_WAITING_BYTES = 16 << 20
_AT_ONCE = 50
_RETRY_SECONDS = 1.0

# Media are recognisable by their beginning, and nobody reads the rest.
_MEDIA = re.compile(r"(data:[-+.\w]{1,60}/[-+.\w]{1,60};base64,[A-Za-z0-9+/]{16})[A-Za-z0-9+/]+={0,2}")

_INSERT = (
    "INSERT INTO request_bodies (request_id, time, request, response) VALUES (:request_id, :time, :request, :response)"
    " ON CONFLICT (request_id) DO NOTHING"
)


@dataclass(frozen=True)
class _Body:
    request_id: str
    time: float
    request: bytes
    response: bytes
    request_bytes: int
    response_bytes: int

    @property
    def size(self) -> int:
        return len(self.request) + len(self.response)

    def values(self) -> sql.Values:
        return {
            "request_id": self.request_id,
            "time": datetime.fromtimestamp(self.time, timezone.utc),
            "request": stored_text(self.request, self.request_bytes),
            "response": stored_text(self.response, self.response_bytes),
        }


def stored_text(body: bytes, whole_bytes: int) -> str | None:
    """A body of which `body` is the beginning, as it is stored: as text, media shortened, secrets replaced, and how
    many bytes are missing said at the end. None of an empty one."""
    if not whole_bytes:
        return None
    text = body.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    text = without_secrets(_MEDIA.sub(r"\1…", text))
    missing = whole_bytes - len(body)
    return f"{text}… [{missing} bytes more]" if missing else text


class BodyLog:
    """The bodies of one process. `record` costs a copy of what is kept, and never waits or raises."""

    def __init__(
        self, database: sql.Database, most_bytes: int = MOST_BYTES, report: Callable[[str], None] = output.note
    ) -> None:
        self.dropped = 0
        """Bodies that were not stored: the database was not there, or did not keep up."""
        self._database = database
        self._most_bytes = most_bytes
        self._report = report
        self._waiting: deque[_Body] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="request-bodies", daemon=True)
        self._thread.start()

    def record(
        self,
        request_id: str,
        time: float,
        request: bytes,
        response: bytes,
        *,
        request_bytes: int | None = None,
        response_bytes: int | None = None,
    ) -> None:
        """Keep the bodies of the request that arrived at `time` (seconds since 1970), or their beginnings: then the
        sizes say how long they were."""
        most = self._most_bytes
        body = _Body(
            request_id,
            time,
            request[:most],
            response[:most],
            len(request) if request_bytes is None else request_bytes,
            len(response) if response_bytes is None else response_bytes,
        )
        with self._changed:
            if self._waiting_bytes + body.size > _WAITING_BYTES:
                self._drop(1)
                return
            self._waiting.append(body)
            self._waiting_bytes += body.size
            self._changed.notify()

    def close(self, timeout: float = 2.0) -> None:
        """Store what waits, for so many seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            self._drop(len(self._waiting))
            self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = [self._waiting[place] for place in range(min(len(self._waiting), _AT_ONCE))]
            if not batch:
                return
            if self._stored(batch):
                with self._changed:
                    for body in batch:
                        self._waiting.popleft()
                        self._waiting_bytes -= body.size
            else:
                with self._changed:
                    if self._closing:
                        return
                    self._changed.wait(_RETRY_SECONDS)

    def _stored(self, batch: list[_Body]) -> bool:
        try:
            with self._database.transaction() as cursor:
                cursor.executemany(_INSERT, [body.values() for body in batch])
        except sql.DatabaseUnusable:
            return False
        except Exception as error:
            # What no attempt will store must not stop what comes after it.
            self._report(f"bodies of {len(batch)} requests cannot be stored: {error}")
        return True

    def _drop(self, count: int) -> None:
        if count and not self.dropped:
            self._report("bodies of requests are dropped: the database does not take them")
        self.dropped += count

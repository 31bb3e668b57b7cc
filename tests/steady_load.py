"""Many callers at once that send requests to a gateway until told to stop, and remember what became of each.

Like any careful client, one retries once on a new connection when its connection failed before any byte of the answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests

_TIMEOUT_SECONDS = 60


@dataclass
class Load:
    """What has happened so far. `completed` are the request ids of answers that arrived whole, `failures` what went
    wrong in words, `retried` how many connections failed before any byte of an answer."""

    url: str
    key: str
    model: str
    completed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    retried: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, streamed: bool) -> None:
        """Send one request after the other."""
        with requests.Session() as session:
            while not self.stopping.is_set():
                try:
                    self._one(session, streamed)
                except (requests.RequestException, AssertionError) as error:
                    self.failures.append(f"{time.time():.3f} {type(error).__name__}: {error}")

    def _one(self, session: requests.Session, streamed: bool) -> None:
        try:
            answer = self._send(session, streamed)
        except requests.ConnectionError:
            self.retried += 1
            session.close()
            answer = self._send(session, streamed)
        with answer:
            body = answer.content
        assert answer.status_code == 200, (answer.status_code, body)
        if streamed:
            assert b"event: message_stop\n" in body[-100:], body[-200:]
        else:
            assert json.loads(body)["type"] == "message", body
        self.completed.append(answer.headers["x-request-id"])

    def _send(self, session: requests.Session, streamed: bool) -> requests.Response:
        message = {"role": "user", "content": "Say something about the sea."}
        return session.post(
            f"{self.url}/v1/messages",
            json={"model": self.model, "max_tokens": 64, "messages": [message], "stream": streamed},
            headers={"x-api-key": self.key, "anthropic-version": "2023-06-01"},
            timeout=_TIMEOUT_SECONDS,
            stream=True,
        )


@contextmanager
def steady_load(url: str, key: str, model: str, callers: int = 8) -> Iterator[Load]:
    """A load of so many callers, every other one of whom streams; at the end all have their last answer."""
    load = Load(url, key, model)
    threads = [threading.Thread(target=load.run, args=(number % 2 == 0,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join()

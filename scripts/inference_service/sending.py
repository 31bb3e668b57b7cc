"""Sends one request to a service and brings back its answer, whatever state the service is in (seed 6.2, 6.3).

While the service loads, it is waited for; only then is the body sent, so that a large file goes over the wire once and
never to a stranger on our service's port. What an answer's status means is data (request.yaml).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import requests
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, ReadTimeoutError

from inference_service import chat, event_stream, http_session, readiness, readiness_answers
from inference_service.body import JsonBody
from inference_service.chat import Completion
from inference_service.contracts import Driver, Progress, Report, ServiceEntry
from inference_service.errors import NotReady, ToolError
from inference_service.readiness_answers import Seen, Verdict
from inference_service.references import Wire
from inference_service.service_faults import Service

_READ_AT_ONCE = 1 << 18
_SHORTEST_WAIT_SECONDS = 0.1


class Exchange:
    """One request on its way. Its fields tell at any moment, however it ends, what is known of it.

    `attempts` counts how often the body was sent, `http_status` is the last answer's. `queue_seconds` passed before it
    was sent for the last time, `first_byte_seconds` until its answer began, both from the beginning. `headers` go with
    it and may be added to before it is sent.
    """

    def __init__(
        self,
        entry: ServiceEntry,
        driver: Driver,
        body: JsonBody,
        wire: Wire,
        timeout: float,
        deadline: float,
        report: Report,
    ) -> None:
        """`timeout`: seconds without a byte from the service. `deadline`: seconds to wait for a service that loads."""
        self.url = entry.host_url.rstrip("/") + wire.chat_completions
        self.headers = {"Content-Type": wire.content_type}
        self.attempts = 0
        self.http_status: int | None = None
        self.queue_seconds: float | None = None
        self.first_byte_seconds: float | None = None
        self._entry = entry
        self._service = Service(entry, driver)
        self._body = body
        self._wire = wire
        self._timeout = timeout
        self._report = report
        self._started = time.monotonic()
        self._give_up_at = self._started + deadline
        self._pause_seconds = wire.retry_first_seconds

    @property
    def total_seconds(self) -> float:
        """Seconds since the request was taken in hand."""
        return time.monotonic() - self._started

    def complete(self) -> Completion:
        """The whole answer.

        Raises:
            NotReady: the service was still loading at the deadline.
            ToolError: the service refused or failed it, died, or answered what is no completion.
        """
        with self._answer() as response:
            return chat.parse_completion(self._read(response))

    def stream(self, on_text: Callable[[str], None]) -> Completion:
        """The same for a streamed answer; `on_text` gets its text in parts, as they arrive."""
        with self._answer() as response:
            if "event-stream" not in response.headers.get("Content-Type", ""):
                raise chat.invalid_answer("it is no event stream", self._read(response))
            self.first_byte_seconds = None
            return event_stream.collect(self._pieces(response), on_text)

    @contextmanager
    def _answer(self) -> Iterator[requests.Response]:
        """The response with status 200, its body still unread."""
        with http_session.session_for(self._entry) as session:
            while True:
                self._wait_until_ready()
                response = self._post(session)
                if response is None:
                    self._pause(0.0, "nothing listens there")
                    continue
                with response:
                    self.http_status = response.status_code
                    if response.status_code == 200:
                        yield response
                        return
                    seen = self._not_yet_or_fault(response)
                self._pause(_retry_after(response), f"{seen.word}: {seen.message}")

    def _wait_until_ready(self) -> None:
        left = self._give_up_at - time.monotonic()
        readiness.wait(self._entry, self._service.driver, max(left, _SHORTEST_WAIT_SECONDS), self._report)

    def _post(self, session: requests.Session) -> requests.Response | None:
        """The beginning of the answer; None where nobody listened, so that nothing was sent."""
        self.attempts += 1
        self.http_status = self.first_byte_seconds = None
        self._report(Progress("sending", f"{len(self._body)} bytes, then waiting for the answer"))
        self.queue_seconds = self.total_seconds
        try:
            # The first of the two timeouts also bounds each write to the socket: a service that is busy reads slowly.
            response = session.post(
                self.url,
                data=self._body,
                headers=self.headers,
                timeout=(self._timeout, self._timeout),
                stream=True,
                allow_redirects=False,
            )
        except requests.Timeout:
            raise self._timed_out() from None
        except requests.RequestException as error:
            if _never_connected(error) and not self._service.status().dead:
                return None
            raise self._service.fault(
                "connection_lost",
                f"the connection to {self.url} broke before an answer came: {_root_cause(error)}",
                "then send it again",
            ) from None
        self.first_byte_seconds = self.total_seconds
        return response

    def _not_yet_or_fault(self, response: requests.Response) -> Seen:
        """What a service says that is still loading; everything else that is no answer is raised."""
        data = self._read(response)
        status = response.status_code
        seen = readiness_answers.understand(status, data, self._entry.job_id, self._wire.readiness)
        said = chat.first_bytes(data) if seen.message.startswith("HTTP ") else seen.message
        if seen.verdict is Verdict.FOREIGN:
            raise ToolError(
                "foreign_service",
                f"{self.url} is answered by another service, {seen.job_id}, not by {self._entry.job_id}",
                "registry.py reconcile; then send it again",
            )
        if seen.verdict is Verdict.FAILED:
            raise self._service.fault(seen.word, f"the service failed and will not answer: {said}")
        if status in (202, 503):
            return seen
        if status in http_session.REFUSED:
            raise http_session.refused(self._entry, status)
        if status == 500:
            raise self._service.fault("inference_failed", f"the service failed at this request: {said}")
        if status not in (400, 404):
            raise ToolError(
                "unexpected_status",
                f"{self.url} answered with HTTP status {status}: {said}",
                "check that nothing else answers at that address: registry.py reconcile",
            )
        meant = self._wire.answers[status]
        kind = {400: "invalid_request", 404: "no_such_endpoint"}[status]
        raise ToolError(kind, f"{self.url}: {meant['meaning']} (HTTP {status}): {said}", meant["action"])

    def _pause(self, asked_for: float, said: str) -> None:
        """Wait before the next attempt: as long as the service asks for (seconds), and longer each time."""
        seconds = max(self._pause_seconds, asked_for)
        self._pause_seconds = min(2 * self._pause_seconds, self._wire.retry_longest_seconds)
        if time.monotonic() + seconds > self._give_up_at:
            raise NotReady(
                "not_ready",
                f"service {self._entry.job_id} was not ready in time; it last said: {said}",
                f"wait_ready.py --job-id {self._entry.job_id}, then send it again (--deadline S waits longer)",
            )
        self._report(Progress("waiting", said))
        time.sleep(seconds)

    def _read(self, response: requests.Response) -> bytes:
        return b"".join(self._pieces(response))

    def _pieces(self, response: requests.Response) -> Iterator[bytes]:
        """The body's bytes as they arrive."""
        received = 0
        try:
            # iter_content() would wait for a full buffer where the answer is not sent in chunks.
            while piece := response.raw.read1(_READ_AT_ONCE, decode_content=True):
                if self.first_byte_seconds is None:
                    self.first_byte_seconds = self.total_seconds
                received += len(piece)
                yield piece
        except ReadTimeoutError:
            raise self._timed_out() from None
        except (HTTPError, OSError) as error:
            raise self._service.fault(
                "answer_cut_off",
                f"the connection to {self.url} broke in the middle of the answer, after {received} bytes: "
                f"{_root_cause(error)}",
                "then send it again",
            ) from None

    def _timed_out(self) -> ToolError:
        return self._service.fault(
            "timeout",
            f"no byte came from {self.url} for {self._timeout:g} s; the service may still be computing the answer",
            "send it again with a longer --timeout",
        )


def _never_connected(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def _root_cause(error: BaseException) -> str:
    """The innermost exception's words: the HTTP client wraps each several times."""
    inner = next((part for part in reversed(error.args) if isinstance(part, BaseException)), None)
    return _root_cause(inner) if inner is not None else str(error) or type(error).__name__


def _retry_after(response: requests.Response) -> float:
    """Seconds that the answer's Retry-After asks for (RFC 9110, 10.2.3: a number of them, or a date); 0 without one."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0

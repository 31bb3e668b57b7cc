"""Waits until a service is ready, and not a second longer than it takes to know that it never will be.

Three things are asked: the service whether it is ready, the service how far it is (to show it), and between these the
platform whether it still runs at all. A service that fails to load stays up and "healthy": its words tell, not its
status (request.yaml, `readiness`). Whatever the network does meanwhile is no verdict: it is noted and asked again.
"""

from __future__ import annotations

import collections
import math
import time
from dataclasses import dataclass

from inference_service import http_session, reaching, references, secrets, short_answers
from inference_service.contracts import Driver, PlatformStatus, Progress, Report, ServiceEntry, State
from inference_service.errors import BadInput, NotReady, ToolError
from inference_service.readiness_answers import Loading, Seen, Verdict, loading, understand

LOG_TAIL_LINES = 20

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 10.0
# Readiness may be noticed 5 % of the load time late; a fifth of that is left for the asking itself.
_PAUSE_SHARE = 0.04
_POLL_TIMEOUT_SECONDS = 5.0
# The side questions come at most this often, and take at most a tenth of the time.
_SIDE_QUESTION_SECONDS = 0.5
_SIDE_QUESTION_SHARE = 10
_SAY_AGAIN_SECONDS = 5.0
# A token that was just made may need a moment to be known everywhere.
_TOKEN_SETTLES_SECONDS = 20.0


def pause(elapsed: float) -> float:
    """Seconds until the next poll, `elapsed` seconds after the first: short, then a share of what has passed."""
    return min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, _PAUSE_SHARE * elapsed))


def require_timeout(timeout: float) -> float:
    """The timeout (seconds), when it is one.

    Raises:
        BadInput: it is not a positive, finite number.
    """
    if not (math.isfinite(timeout) and timeout > 0):
        raise BadInput(
            "bad_timeout", f"{timeout:g} is not a number of seconds to wait", "give a positive number: --timeout 600"
        )
    return timeout


def log_tail(entry: ServiceEntry, driver: Driver) -> list[str]:
    """The last lines of the service's log, secrets removed; none where it cannot be read."""
    try:
        lines = collections.deque(driver.logs(entry, LOG_TAIL_LINES, follow=False), maxlen=LOG_TAIL_LINES)
    except ToolError:
        return []
    return [secrets.redact(line) for line in lines]


def died(entry: ServiceEntry, driver: Driver, status: PlatformStatus) -> ToolError:
    """The error for a service that its platform does not run any more, with the end of its log."""
    reason = f": {status.reason}" if status.reason else ""
    return ToolError(
        "service_died",
        f"the {entry.network_arch} service {entry.job_id} is not running any more{reason}",
        "its log says why (log_tail); correct that and start it again",
        job_id=entry.job_id,
        log_tail=log_tail(entry, driver),
    )


def wait(entry: ServiceEntry, driver: Driver, timeout: float, report: Report) -> float:
    """Wait until the service is ready; the seconds that took.

    Raises:
        NotReady: it was not within `timeout` seconds; `last_seen` says what it was doing.
        ToolError: it never will be (it failed, it died, or another service answers in its place); `log_tail` has the
            end of its log.
        BadInput: `timeout` is no number of seconds.
    """
    return _Wait(entry, driver, require_timeout(timeout), report).run()


@dataclass
class _Turn:
    """When a side question is due again."""

    due: float = 0.0

    def after(self, asked: float) -> None:
        now = time.monotonic()
        self.due = now + max(_SIDE_QUESTION_SECONDS, _SIDE_QUESTION_SHARE * (now - asked))


class _Wait:
    def __init__(self, entry: ServiceEntry, driver: Driver, timeout: float, report: Report) -> None:
        self._entry, self._driver, self._timeout, self._report = entry, driver, timeout, report
        self._wire = references.load().wire
        self._session = http_session.session_for(entry)
        self._begun = time.monotonic()
        self._seen = Seen(Verdict.WAIT, "not_reached", "nothing was heard of it")
        self._heard: Seen | None = None
        self._loading: Loading | None = None
        self._status = PlatformStatus(State.RUNNING)
        self._progress_turn, self._status_turn = _Turn(), _Turn(self._begun + _SIDE_QUESTION_SECONDS)
        self._out_of_reach = ""
        self._said: tuple[str, str] | None = None
        self._said_at = 0.0
        self._refused_since: float | None = None

    def run(self) -> float:
        try:
            while True:
                self._ask_service()
                if self._seen.verdict is Verdict.READY and self._is_ours():
                    return self._elapsed()
                self._refuse_hopeless()
                self._ask_progress()
                self._ask_platform()
                self._say()
                left = self._timeout - self._elapsed()
                if left <= 0:
                    raise self._not_ready()
                time.sleep(min(pause(self._elapsed()), left))
        finally:
            self._session.close()

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _ask_service(self) -> None:
        answer = self._get(self._wire.readiness_path)
        if isinstance(answer, str):
            self._seen = Seen(Verdict.WAIT, "unreachable", answer)
            return
        self._seen = understand(*answer, self._entry.job_id, self._wire.readiness)
        self._heard = self._seen

    def _is_ours(self) -> bool:
        # A server that names no job_id may be anyone: at least ours has to be alive.
        if self._seen.job_id is None:
            self._status_turn.due = 0.0
            self._ask_platform()
        return self._status.state is not State.PENDING

    def _another_way(self) -> bool:
        """Whether a stranger that answers is no verdict: ours has not begun, or is now reached by another port."""
        self._status_turn.due = 0.0
        try:
            self._ask_platform()
        except ToolError:
            # Ours has died. Who answers in its place says more than that.
            return False
        before = self._entry
        if self._status.state is State.RUNNING:
            self._reach_again()
        return self._status.state is State.PENDING or self._entry.host_url != before.host_url

    def _refuse_hopeless(self) -> None:
        if self._seen.verdict is Verdict.FOREIGN and not self._another_way():
            raise ToolError(
                "foreign_service",
                f"at {self._entry.host_url} another service answers, {self._seen.job_id}, not {self._entry.job_id}",
                "find what else uses that port, stop one of the two, or start ours with another --host-port",
                job_id=self._entry.job_id,
                foreign_job_id=self._seen.job_id,
            )
        if self._seen.verdict is Verdict.FAILED:
            raise self._failed(self._seen.word, self._seen.message)
        self._refuse_refused()

    def _refuse_refused(self) -> None:
        """A token that is refused again and again is the wrong one: no waiting makes it right."""
        if self._seen.http_status not in http_session.REFUSED:
            self._refused_since = None
            return
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since >= _TOKEN_SETTLES_SECONDS:
            raise http_session.refused(self._entry, self._seen.http_status)

    def _failed(self, word: str, message: str) -> ToolError:
        return ToolError(
            word,
            f"the {self._entry.network_arch} service {self._entry.job_id} failed and will not become ready: {message}",
            f"correct the cause (model_path is {self._entry.model_path!r}; see log_tail) and start it again",
            job_id=self._entry.job_id,
            log_tail=log_tail(self._entry, self._driver),
        )

    def _ask_progress(self) -> None:
        asked = time.monotonic()
        if asked < self._progress_turn.due or self._seen.http_status is None:
            return
        answer = self._get(self._wire.liveness)
        self._progress_turn.after(asked)
        self._loading = None if isinstance(answer, str) else loading(answer[1])
        if self._loading is not None and self._loading.stage == "error":
            raise self._failed("service_failed", self._loading.message)

    def _ask_platform(self) -> None:
        asked = time.monotonic()
        if asked < self._status_turn.due:
            return
        try:
            self._status = self._driver.status(self._entry)
        except ToolError as error:
            self._status = PlatformStatus(State.UNKNOWN, error.message)
        self._status_turn.after(asked)
        if self._status.dead:
            raise died(self._entry, self._driver, self._status)
        if self._status.state is State.RUNNING and self._seen.http_status is None:
            self._reach_again()

    def _reach_again(self) -> None:
        # It runs and does not answer: it may have begun only now, or its tunnel has died since.
        try:
            reached = reaching.reachable(self._entry, self._driver, self._report)
            self._out_of_reach = ""
        except ToolError as error:
            self._out_of_reach = error.message
            return
        if reached != self._entry:
            # Its token and its host's proxy settings go with the address.
            self._session.close()
            self._entry, self._session = reached, http_session.session_for(reached)

    def _say(self) -> None:
        if self._loading is not None:
            stage, message, details = self._loading.stage, self._loading.message, dict(self._loading.details)
            if self._loading.remaining_steps:
                message += f" (remaining: {', '.join(self._loading.remaining_steps)})"
                details["remaining_steps"] = list(self._loading.remaining_steps)
        elif self._seen.http_status is None:
            stage, message, details = "starting", f"waiting for {self._entry.host_url} to answer", {}
        else:
            stage, message, details = self._seen.word, self._seen.message, {}
        if self._status.state is State.UNKNOWN:
            message += f"; {self._entry.platform} cannot be asked about it: {self._status.reason}"
        elif self._status.state is State.PENDING:
            message += f"; pending on {self._entry.platform}: {self._status.reason}"
        elif self._out_of_reach:
            message += f"; it cannot be reached: {self._out_of_reach}"
        now = time.monotonic()
        if (stage, message) != self._said or now >= self._said_at + _SAY_AGAIN_SECONDS:
            self._said, self._said_at = (stage, message), now
            self._report(Progress(stage, message, details={**details, "elapsed_seconds": round(self._elapsed(), 1)}))

    def _not_ready(self) -> NotReady:
        # A busy service leaves single polls unanswered; what it said before tells more than that.
        last = self._heard or self._seen
        seen = last.document() | {"seconds": round(self._elapsed(), 1)}
        if self._loading is not None:
            seen["stage"] = self._loading.stage
        if self._status.state is not State.RUNNING:
            seen["platform"] = f"{self._status.state.value}: {self._status.reason}"
        return NotReady(
            "not_ready",
            f"the {self._entry.network_arch} service {self._entry.job_id} was not ready within {self._timeout:g} s; "
            f"last seen: {last.word}: {last.message}",
            f"wait longer: wait_ready.py --job-id {self._entry.job_id} --timeout {max(600, 2 * self._timeout):g}",
            job_id=self._entry.job_id,
            last_seen=seen,
        )

    def _get(self, path: str) -> tuple[int, bytes] | str:
        """Status and the beginning of the body, or in words why there was no answer."""
        limit = max(0.01, min(_POLL_TIMEOUT_SECONDS, self._timeout - self._elapsed()))
        return short_answers.get(self._session, self._entry, path, limit)

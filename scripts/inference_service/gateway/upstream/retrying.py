"""Whether to ask an upstream again, and after how long. Pure: nothing is sent and nobody waits here.

Only a request of which no byte has been passed on may be sent again; the caller of `delay` sees to that. Waits grow
exponentially and are drawn from the whole range ("full jitter"), so that requests that failed together do not come back
together. What the upstream asks for by Retry-After is the least; if it asks for more than the policy bears, the answer
is the caller's to have now, with the header, rather than ours to sit on.
"""

from __future__ import annotations

import datetime
import email.utils
import math
import random as randomness
import time
from collections.abc import Callable
from dataclasses import dataclass

from inference_service.gateway.upstream.errors import ConnectFailed, Reset, UpstreamError

# Refused or failed for now. 501 and 505 are for good; what a 4xx but these objects to does not change by repeating it.
RETRIED_STATUSES = frozenset((408, 429, 500, 502, 503, 504, 529))


@dataclass(frozen=True)
class RetryPolicy:
    """At most `attempts` in all; waits of `base_seconds`, doubled each time up to `longest_seconds`; a Retry-After of
    up to `longest_retry_after` seconds is waited for.
    """

    attempts: int = 3
    base_seconds: float = 0.25
    longest_seconds: float = 4.0
    longest_retry_after: float = 10.0


DEFAULT_POLICY = RetryPolicy()


def delay(
    attempt: int,
    status: int | None,
    retry_after: bytes | None = None,
    *,
    error: UpstreamError | None = None,
    time_left: float = math.inf,
    policy: RetryPolicy = DEFAULT_POLICY,
    random: Callable[[], float] = randomness.random,
    now: Callable[[], float] = time.time,
) -> float | None:
    """Seconds to wait before the next attempt; None: do not try again.

    `attempt` counts those made (1 after the first). `status` is what was answered, with its Retry-After header; None
    where there was no answer but `error`. `time_left` is how long the caller of the whole will still wait, in seconds.
    """
    if attempt >= policy.attempts:
        return None
    if status is None:
        if not _worth_it(error):
            return None
    elif status not in RETRIED_STATUSES:
        return None
    spread = min(policy.longest_seconds, policy.base_seconds * 2.0 ** (attempt - 1))
    asked = retry_after_seconds(retry_after, now) if retry_after is not None else None
    if asked is not None and asked > policy.longest_retry_after:
        return None
    wait = (asked or 0.0) + spread * random()
    return wait if wait < time_left else None


def retry_after_seconds(value: bytes, now: Callable[[], float] = time.time) -> float | None:
    """What a Retry-After header asks for, as seconds from now, never negative (RFC 9110 10.2.3; a decimal
    fraction, which some send, is understood). None for what is neither a number of seconds nor a date.
    """
    text = value.strip().decode("latin-1")
    if text and text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    try:
        # A date of zone -0000 comes without a zone: it is UTC.
        return max(0.0, (at if at.tzinfo else at.replace(tzinfo=datetime.timezone.utc)).timestamp() - now())
    except (OverflowError, ValueError, OSError):
        return None


def _worth_it(error: UpstreamError | None) -> bool:
    # A time-out has cost its time already, and what waits for the answer does so no longer; a bad answer stays bad.
    return isinstance(error, ConnectFailed) or (isinstance(error, Reset) and error.before_any_byte)

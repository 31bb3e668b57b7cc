"""When to ask again, and after how long."""

from __future__ import annotations

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.gateway.upstream.errors import (
    BadAnswer,
    Closed,
    ConnectFailed,
    PoolBusy,
    Reset,
    TimedOut,
    UpstreamError,
)
from inference_service.gateway.upstream.retrying import RETRIED_STATUSES, RetryPolicy, delay, retry_after_seconds

NOW = 1_790_000_000.0


@given(status=st.integers(100, 599), attempt=st.integers(1, 5), chance=st.floats(0, 1, exclude_max=True))
def test_only_what_may_pass_is_tried_again_and_never_too_often(status: int, attempt: int, chance: float) -> None:
    wait = delay(attempt, status, random=lambda: chance)
    if status in RETRIED_STATUSES and attempt < 3:
        assert wait is not None
        assert 0 <= wait < 0.25 * 2 ** (attempt - 1)
    else:
        assert wait is None


def test_waits_double_up_to_the_longest() -> None:
    policy = RetryPolicy(attempts=9, base_seconds=1, longest_seconds=5)
    waits = [delay(attempt, 529, policy=policy, random=lambda: 1.0) for attempt in range(1, 6)]
    assert waits == [1, 2, 4, 5, 5]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectFailed("x"), True),
        (Reset("x", before_any_byte=True), True),
        (Reset("x", before_any_byte=False), False),
        (TimedOut("x"), False),
        (BadAnswer("x"), False),
        (PoolBusy("x"), False),
        (Closed("x"), False),
        (None, False),
    ],
)
def test_which_failures_are_worth_another_attempt(error: UpstreamError | None, again: bool) -> None:
    assert (delay(1, None, error=error) is not None) is again


def test_retry_after_is_the_least_and_jitter_comes_on_top() -> None:
    assert delay(1, 429, b"3", random=lambda: 0.0) == 3
    assert delay(2, 429, b"3", random=lambda: 0.5) == 3.25


def test_a_retry_after_beyond_the_cap_is_left_to_the_caller() -> None:
    assert delay(1, 429, b"10", random=lambda: 0.0) == 10
    assert delay(1, 429, b"11") is None
    assert delay(1, 429, b"9" * 400) is None


def test_no_wait_reaches_past_the_time_that_is_left() -> None:
    assert delay(1, 503, b"2", time_left=2.5, random=lambda: 0.0) == 2
    assert delay(1, 503, b"2", time_left=2.0, random=lambda: 0.0) is None


def test_a_retry_after_that_says_nothing_is_as_none() -> None:
    assert delay(1, 503, b"soon", random=lambda: 1.0) == 0.25


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0),
        (b" 7 ", 7),
        (b"1.5", 1.5),
        (email.utils.formatdate(NOW + 30, usegmt=True).encode(), 30),
        (email.utils.formatdate(NOW - 30, usegmt=True).encode(), 0),
        (email.utils.formatdate(NOW + 30).encode(), 30),  # zone -0000
        (b"-1", None),
        (b"1.2.3", None),
        (b"nan", None),
        (b"inf", None),
        (b"", None),
        (b"\xb2", None),
        (b"Thu, 99 Foo 2026 00:00:00 GMT", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(value: bytes, seconds: float | None) -> None:
    assert retry_after_seconds(value, lambda: NOW) == seconds


@given(st.binary(max_size=60))
def test_no_header_value_makes_it_fail(value: bytes) -> None:
    seconds = retry_after_seconds(value)
    assert seconds is None or seconds >= 0

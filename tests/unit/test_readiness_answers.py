"""What a service's answers mean, and how often it is asked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import readiness, references
from inference_service.errors import BadInput
from inference_service.readiness_answers import Verdict, loading, understand

WORDS = references.load().wire.readiness
JOB = "5f0c6b7e-0000-4000-8000-000000000001"


def reason(word: str, **more: object) -> bytes:
    return json.dumps({"status": "not_ready", "reason": word, "message": "why", **more}).encode()


def error_type(word: str, **more: object) -> bytes:
    return json.dumps({"error": {"type": word, "message": "why"}, **more}).encode()


@pytest.mark.parametrize("shape", [reason, error_type])
@pytest.mark.parametrize("status", [200, 202, 500, 503])
@pytest.mark.parametrize(
    "word", ["model_load_error", "initialization_error", "model_load_failed", "initialization_failed"]
)
def test_a_word_of_failure_is_final_in_both_shapes_whatever_the_status(shape, status: int, word: str) -> None:  # type: ignore[no-untyped-def]
    seen = understand(status, shape(word), JOB, WORDS)
    assert (seen.verdict, seen.word, seen.message) == (Verdict.FAILED, word, "why")


@pytest.mark.parametrize("shape", [reason, error_type])
@pytest.mark.parametrize("status", [200, 202, 503])
@pytest.mark.parametrize(
    "word", ["server_initializing", "model_loading", "model_not_ready", "model_not_loaded", "news"]
)
def test_any_other_word_means_wait_even_with_status_200(shape, status: int, word: str) -> None:  # type: ignore[no-untyped-def]
    assert understand(status, shape(word), JOB, WORDS).verdict is Verdict.WAIT


@pytest.mark.parametrize(
    "body", [b'{"status": "ready"}', json.dumps({"status": "ready", "job_id": JOB}).encode(), b"{}"]
)
def test_status_200_with_nothing_against_it_is_ready(body: bytes) -> None:
    assert understand(200, body, JOB, WORDS).verdict is Verdict.READY


@pytest.mark.parametrize("body", [b"", b"<html>It works!</html>", b"[]", b'"ready"', b'{"status": "re', b"[" * 100_000])
def test_status_200_with_a_body_that_is_no_json_object_is_not_readiness(body: bytes) -> None:
    assert understand(200, body, JOB, WORDS).verdict is Verdict.WAIT


@pytest.mark.parametrize("body", [b'{"status": "ready", "job_id": "other"}', reason("model_loading", job_id="other")])
def test_another_job_id_is_a_foreign_service_ready_or_not(body: bytes) -> None:
    seen = understand(200, body, JOB, WORDS)
    assert (seen.verdict, seen.job_id) == (Verdict.FOREIGN, "other")


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_answer_whatsoever_breaks_it_and_only_200_is_ready(status: int, body: bytes) -> None:
    verdict = understand(status, body, JOB, WORDS).verdict
    assert verdict is not Verdict.READY or status == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "type", "reason", "status", "message", "job_id", "progress", "stage", "remaining_steps"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)


@given(json_values)
def test_any_json_is_understood_as_something(value: object) -> None:
    body = json.dumps(value).encode()
    understand(200, body, JOB, WORDS)
    loading(body)


def test_progress_is_read_from_liveness_with_its_steps() -> None:
    progress = {
        "stage": "loading_model",
        "message": "Loading",
        "remaining_steps": ["a", "b"],
        "details": {"phase": "x"},
    }
    said = loading(json.dumps({"status": "healthy", "progress": progress}).encode())
    assert said is not None
    assert (said.stage, said.remaining_steps, said.details) == ("loading_model", ("a", "b"), {"phase": "x"})
    assert loading(b'{"status": "healthy"}') is None


@given(st.floats(0, 1e6))
def test_the_pause_keeps_the_lag_within_half_a_second_or_5_percent(elapsed: float) -> None:
    pause = readiness.pause(elapsed)
    assert 0 < pause <= 10
    assert pause <= max(0.1, 0.05 * elapsed)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_pause_never_shrinks(one: float, other: float) -> None:
    assert readiness.pause(min(one, other)) <= readiness.pause(max(one, other))


def test_an_hour_of_loading_takes_under_a_thousand_polls() -> None:
    elapsed, polls = 0.0, 0
    while elapsed < 3600:
        elapsed += readiness.pause(elapsed)
        polls += 1
    assert polls < 1000


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_what_is_no_number_of_seconds_is_refused(timeout: float) -> None:
    with pytest.raises(BadInput, match="number of seconds"):
        readiness.require_timeout(timeout)

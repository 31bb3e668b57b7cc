"""Usage from both wire formats: the parts are all there, and nothing unknown becomes a zero."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import metering
from inference_service.metering import Usage

COUNTS = st.integers(0, 10_000_000)
JUNK = (
    st.none()
    | st.booleans()
    | st.text(max_size=3)
    | st.floats()
    | st.lists(st.none(), max_size=1)
    | st.integers(max_value=-1)
)


def test_cached_tokens_are_part_of_openais_prompt() -> None:
    usage = metering.from_openai(
        {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "total_tokens": 105,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
        }
    )
    assert usage == Usage(100, 5, cached_tokens=60, cache_write_5m_tokens=10)
    assert usage.uncached_tokens == 30


def test_cached_tokens_are_beside_anthropics_input() -> None:
    usage = metering.from_anthropic(
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_read_input_tokens": 60,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
        }
    )
    assert usage == Usage(100, 5, cached_tokens=60, cache_write_5m_tokens=20, cache_write_1h_tokens=10)
    assert usage.uncached_tokens == 10


def test_cache_writes_without_a_time_to_live_are_those_of_five_minutes() -> None:
    usage = metering.from_anthropic({"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 9})
    assert usage == Usage(10, 1, cache_write_5m_tokens=9)


@pytest.mark.parametrize("missing", ["prompt_tokens", "completion_tokens"])
@given(junk=JUNK)
def test_a_count_that_is_none_makes_openais_usage_unknown(missing: str, junk: Any) -> None:
    assert metering.from_openai({"prompt_tokens": 1, "completion_tokens": 1, missing: junk}) is None


@pytest.mark.parametrize("missing", ["input_tokens", "output_tokens"])
@given(junk=JUNK)
def test_a_count_that_is_none_makes_anthropics_usage_unknown(missing: str, junk: Any) -> None:
    assert metering.from_anthropic({"input_tokens": 1, "output_tokens": 1, missing: junk}) is None


@given(
    COUNTS, COUNTS, st.fixed_dictionaries({"cached_tokens": COUNTS | JUNK, "cache_write_tokens": COUNTS | JUNK}) | JUNK
)
def test_the_parts_of_openais_prompt_are_never_more_than_the_whole(prompt: int, completion: int, details: Any) -> None:
    usage = metering.from_openai(
        {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    )
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (prompt, completion)
    assert min(usage.uncached_tokens, usage.cached_tokens, usage.cache_write_5m_tokens) >= 0


@given(
    COUNTS,
    st.fixed_dictionaries(
        {},
        optional={
            "cache_read_input_tokens": COUNTS | JUNK,
            "cache_creation_input_tokens": COUNTS | JUNK,
            "cache_creation": st.fixed_dictionaries(
                {}, optional={f"ephemeral_{ttl}_input_tokens": COUNTS | JUNK for ttl in ("5m", "1h")}
            )
            | JUNK,
        },
    ),
)
def test_anthropics_uncached_input_is_what_it_says(uncached: int, cache: dict[str, Any]) -> None:
    usage = metering.from_anthropic({"input_tokens": uncached, "output_tokens": 3, **cache})
    assert usage is not None
    assert usage.uncached_tokens == uncached
    assert min(usage.cached_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) >= 0


def test_the_last_count_of_a_stream_wins_and_null_is_no_count() -> None:
    start = {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 5}
    merged = metering.merge(start, {"output_tokens": 40, "input_tokens": None})
    merged = metering.merge(merged, {"output_tokens": 60})
    assert metering.from_anthropic(merged) == Usage(15, 60, cached_tokens=5)
    assert metering.merge(None, start) is start


def test_an_estimate_keeps_what_was_reported_and_is_marked() -> None:
    reported = Usage(100, 2, 60, 20, 10)
    estimated = metering.estimate(reported, body_bytes=9_000, produced_bytes=30, deltas=4)
    assert estimated == Usage(100, 10, 60, 20, 10, estimated=True)


def test_an_estimate_without_a_report_goes_by_the_bytes() -> None:
    assert metering.estimate(None, body_bytes=301, produced_bytes=1, deltas=3) == Usage(101, 3, estimated=True)
    assert metering.estimate(None, body_bytes=0, produced_bytes=0, deltas=0).output_tokens == 0


@given(st.text(max_size=200), st.integers(0, 3))
def test_the_upper_bound_is_above_any_estimate(text: str, linked: int) -> None:
    size = len(text.encode("utf-8", "replace"))
    bound = metering.input_upper_bound(size, linked)
    assert metering.tokens_of_text(size) <= size + 1 <= bound
    assert metering.input_upper_bound(10**9) == metering.LARGEST_PROMPT_TOKENS
    assert metering.input_upper_bound(size, linked + 1) > bound

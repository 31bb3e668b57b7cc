"""From a vendor's `usage` to a cost: it is the same however the answer came, never negative, and never a guess."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import metering
from inference_service.errors import ToolError
from inference_service.metering import Usage
from inference_service.model_price import ModelPrice
from inference_service.token_pricing import PriceTable

NOW = 1_795_000_000.0
OURS = PriceTable.load({})


def priced(model: str, table: PriceTable = OURS) -> ModelPrice:
    price = table.for_model(model, NOW)
    assert price is not None
    return price


HAIKU = priced("claude-haiku-4-5")
COUNTS = st.integers(0, 200_000)
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5), st.lists(COUNTS)
)
ANTHROPIC_NAMES = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "service_tier",
    "speed",
    "inference_geo",
)


def usd(usage: Usage | None, price: ModelPrice = HAIKU) -> Decimal | None:
    assert usage is not None
    return price.cost(usage)


@given(
    st.fixed_dictionaries({}, optional={name: st.one_of(COUNTS, ANYTHING) for name in ANTHROPIC_NAMES}),
    st.one_of(
        ANYTHING,
        st.dictionaries(
            st.sampled_from(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")), st.one_of(COUNTS, ANYTHING)
        ),
    ),
    st.one_of(ANYTHING, st.dictionaries(st.just("web_search_requests"), ANYTHING)),
)
def test_whatever_a_vendor_reports_no_cost_is_negative_and_none_fails(
    usage: dict[str, Any], creation: object, tools: object
) -> None:
    counted = metering.from_anthropic({**usage, "cache_creation": creation, "server_tool_use": tools})
    if counted is not None:
        cost = HAIKU.cost(counted)
        assert (cost is None) == (HAIKU.unpriced_because(counted) is not None)
        assert cost is None or cost >= 0


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.data())
def test_a_stream_costs_what_the_same_answer_costs_at_once(
    plain: int, output: int, read: int, five: int, hour: int, data: st.DataObject
) -> None:
    whole = {
        "input_tokens": plain,
        "output_tokens": output,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": five + hour,
        "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
        "service_tier": "standard",
        "inference_geo": "not_available",
    }
    told = metering.merge(None, {**whole, "output_tokens": 1})
    for so_far in sorted(data.draw(st.lists(st.integers(0, output), max_size=4))):
        told = metering.merge(told, {"output_tokens": so_far})
    told = metering.merge(told, {"output_tokens": output, "cache_read_input_tokens": None})
    cost = usd(metering.from_anthropic(whole))
    assert str(usd(metering.from_anthropic(told))) == str(cost)
    expected = Fraction(plain + 5 * output) + Fraction(read, 10) + Fraction(5 * five, 4) + 2 * hour
    assert cost is not None
    assert Fraction(cost) == expected / 10**6


@given(COUNTS, COUNTS, COUNTS)
def test_both_wire_formats_cost_the_same(plain: int, output: int, read: int) -> None:
    openai = {
        "prompt_tokens": plain + read,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": read},
    }
    anthropic = {"input_tokens": plain, "output_tokens": output, "cache_read_input_tokens": read}
    assert usd(metering.from_openai(openai)) == usd(metering.from_anthropic(anthropic))


@given(COUNTS, COUNTS, st.integers(0, 10**6), st.integers(0, 10**4))
def test_an_aborted_stream_costs_at_least_what_was_reported(
    plain: int, output: int, produced: int, deltas: int
) -> None:
    reported = metering.from_anthropic({"input_tokens": plain, "output_tokens": output, "cache_read_input_tokens": 7})
    estimated = metering.estimate(reported, body_bytes=100, produced_bytes=produced, deltas=deltas)
    least, cost = usd(reported), usd(estimated)
    assert least is not None
    assert cost is not None
    assert cost >= least


# --- terms that are not the standard

PLAIN = {"input_tokens": 1000, "output_tokens": 100}
STANDARD = {
    "service_tier": "standard",
    "speed": "standard",
    "inference_geo": "global",
    "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 3},
}


def test_standard_terms_are_the_list_price() -> None:
    assert (
        usd(metering.from_anthropic({**PLAIN, **STANDARD})) == usd(metering.from_anthropic(PLAIN)) == Decimal("0.0015")
    )
    nothing = dict.fromkeys(STANDARD)
    assert usd(metering.from_anthropic({**PLAIN, **nothing})) == Decimal("0.0015")


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ({"speed": "fast"}, "speed=fast"),
        ({"inference_geo": "us"}, "inference_geo=us"),
        ({"service_tier": "priority"}, "service_tier=priority"),
        ({"server_tool_use": {"web_search_requests": 2}}, "web_search_requests=2"),
        ({"cache_creation_input_tokens": 5, "speed": "fast"}, "speed=fast"),
    ],
)
def test_terms_without_a_price_of_their_own_are_unpriced_not_at_the_list_price(
    term: dict[str, object], told: str
) -> None:
    usage = metering.from_anthropic({**PLAIN, **STANDARD, **term})
    assert usage is not None
    assert (HAIKU.cost(usage), HAIKU.nano_usd(usage)) == (None, None)
    assert told in (HAIKU.unpriced_because(usage) or "")
    early = metering.estimate(usage, body_bytes=10, produced_bytes=10, deltas=1)
    assert HAIKU.cost(early) is None


def with_terms(tmp_path: Path, *rules: Mapping[str, object]) -> PriceTable:
    file = tmp_path / "my prices.yaml"
    file.write_text(json.dumps({"term_prices": [{"source": "contract", **rule} for rule in rules]}))
    return PriceTable.load({"TAO_INF_PRICING": str(file)})


US = {"models": "claude-*", "term": "inference_geo", "value": "us", "multiplier": "1.1"}
FAST = {"models": "claude-haiku-*", "term": "speed", "value": "fast", "multiplier": 6}
SEARCH = {"models": "claude-*", "term": "web_search_requests", "usd_each": "0.01"}


def test_a_user_gives_terms_their_price(tmp_path: Path) -> None:
    price = priced("claude-haiku-4-5-20251001", with_terms(tmp_path, US, FAST, SEARCH))

    def of(**terms: object) -> Decimal | None:
        return usd(metering.from_anthropic({**PLAIN, **terms}), price)

    assert of() == Decimal("0.0015")
    assert of(inference_geo="us") == Decimal("0.00165")
    assert of(inference_geo="us", speed="fast") == Decimal("0.0099")
    assert of(inference_geo="us", server_tool_use={"web_search_requests": 3}) == Decimal("0.03165")
    assert of(inference_geo="eu") is None
    assert of(speed="fast", service_tier="priority") is None
    sonnet = priced("claude-sonnet-5", with_terms(tmp_path, US, FAST, SEARCH))
    assert usd(metering.from_anthropic({**PLAIN, "speed": "fast"}), sonnet) is None


@given(COUNTS, COUNTS, st.sampled_from(["us", "global"]), st.sampled_from(["fast", "standard"]))
def test_the_upper_bound_holds_on_the_dearest_terms(plain: int, output: int, geo: str, speed: str) -> None:
    usage = metering.from_anthropic(
        {"input_tokens": plain, "output_tokens": output, "inference_geo": geo, "speed": speed}
    )
    assert usage is not None
    cost = DEAR.nano_usd(usage)
    assert cost is not None
    assert cost <= DEAR.upper_bound_nano_usd(usage.input_tokens, usage.output_tokens)


DEAR = ModelPrice(
    "m", HAIKU.bands, None, "a test", "tokens:m", {("inference_geo", "us"): 1100, ("speed", "fast"): 6000}, {}
)


@pytest.mark.parametrize(
    "rule",
    [
        {**US, "usd_each": "1"},
        {"models": "*", "term": "speed", "multiplier": "1"},
        {"models": "*", "term": "speed", "value": "fast"},
        {"models": "*", "term": "speed", "value": "fast", "multiplier": "1.0001"},
        {"models": "*", "term": "web_search_requests", "usd_each": "0.0000001"},
    ],
)
def test_a_rule_for_terms_that_says_too_much_or_too_little_is_refused(rule: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ToolError) as refused:
        with_terms(tmp_path, rule)
    assert "term_prices.0" in refused.value.message

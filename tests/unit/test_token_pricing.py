"""Tokens are priced exactly, with the row of their time and the band of their prompt; an unknown price is never 0."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import datetime
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inference_service import money, pricing_file
from inference_service.errors import ToolError
from inference_service.metering import Usage
from inference_service.model_price import ModelPrice
from inference_service.token_pricing import PriceTable

PARTS = ("input", "output", "cache_write_5m", "cache_write_1h", "cached")


def at(day: str) -> float:
    return datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()


NOW = at("2026-11-20")
OURS = PriceTable.load({})


def ours(model: str, when: float = NOW, batch: bool = False) -> ModelPrice:
    price = OURS.for_model(model, when, batch)
    assert price is not None, model
    return price


def table(tmp_path: Path, text: str) -> PriceTable:
    file = tmp_path / "my prices.yaml"
    file.write_text(text)
    return PriceTable.load({"TAO_INF_PRICING": str(file)})


def row(**fields: object) -> str:
    """A file with one row of token prices."""
    known = {"model": "m", "input": "1", "output": "2", "source": "x"}
    return yaml.safe_dump({"token_prices": [{**known, **fields}]})


# --- the prices that are delivered

MILLION = 1_000_000
EACH_PART = {
    "input": Usage(MILLION, 0),
    "output": Usage(0, MILLION),
    "cache_write_5m": Usage(MILLION, 0, cache_write_5m_tokens=MILLION),
    "cache_write_1h": Usage(MILLION, 0, cache_write_1h_tokens=MILLION),
    "cached": Usage(MILLION, 0, cached_tokens=MILLION),
}


@pytest.mark.parametrize(
    ("models", "usd"),
    [
        ("claude-fable-5-2", "8 40 10 16 None"),
        ("claude-fable-5-1", "10 50 12.50 20 0.25"),
        ("claude-fable-5", "10 50 12.50 20 1.00"),
        ("claude-opus-5-5", "4 20 5 8 0.20"),
        ("claude-opus-5 claude-opus-4-8 claude-opus-4-7 claude-opus-4-6 claude-opus-4-5", "5 25 6.25 10 0.50"),
        ("claude-opus-4-1 claude-opus-4", "15 75 18.75 30 1.50"),
        ("claude-sonnet-5-5", "2 10 2.50 4 0.10"),
        ("claude-sonnet-5", "2 10 2.50 4 0.20"),
        ("claude-sonnet-4-6 claude-sonnet-4-5 claude-sonnet-4", "3 15 3.75 6 0.30"),
        ("claude-haiku-4-5", "1 5 1.25 2 0.10"),
        ("claude-haiku-3-5", "0.80 4 1 1.6 0.08"),
    ],
)
def test_a_million_tokens_of_each_kind_cost_what_the_vendors_list_says(models: str, usd: str) -> None:
    expected = [None if word == "None" else Decimal(word) for word in usd.split()]
    for model in models.split():
        assert [ours(model).cost(EACH_PART[part]) for part in PARTS] == expected, model


@pytest.mark.parametrize(
    ("prompt", "usage", "usd"),
    [
        ("small", Usage(100_000, 1000, 60_000, 20_000, 10_000), "0.0066"),
        ("one more", Usage(100_001, 1000, 60_000, 20_000, 10_000), "0.0330005"),
        ("small, not cached", Usage(100_000, 0), "0.01"),
        ("one more, all of it cached", Usage(100_001, 0, 100_001), "0.00500005"),
    ],
)
def test_the_whole_prompt_picks_the_band_and_its_prices_hold_for_every_token(
    prompt: str, usage: Usage, usd: str
) -> None:
    assert ours("claude-haiku-5-5").cost(usage) == Decimal(usd), prompt


def test_a_request_is_priced_with_the_row_in_force_at_its_time() -> None:
    cached = EACH_PART["cached"]
    change = at("2026-10-07")
    for when, usd in [(at("2026-09-01"), "0.20"), (change - 0.001, "0.20"), (change, "0.10"), (NOW, "0.10")] * 2:
        assert ours("claude-sonnet-5-5", when).cost(cached) == Decimal(usd)
    assert ours("claude-sonnet-5-5", change - 1).priced_by == "tokens:claude-sonnet-5-5"
    assert ours("claude-sonnet-5-5", change).priced_by == "tokens:claude-sonnet-5-5@2026-10-07"


def test_before_its_first_price_a_model_is_unpriced() -> None:
    assert OURS.for_model("claude-opus-5-5", at("2026-09-22") - 1) is None
    assert ours("claude-opus-5-5", at("2026-09-22")).priced_by == "tokens:claude-opus-5-5@2026-09-22"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-5-5[1m]", "claude-sonnet-5-5"),
        ("claude-sonnet-4-5-20250929[1m]", "claude-sonnet-4-5"),
        ("anthropic/claude-opus-5-5", "claude-opus-5-5"),
        ("anthropic/claude-opus-4-1-20250805", "claude-opus-4-1"),
        ("claude-opus-5-latest", "claude-opus-5"),
        ("claude-opus-4-0", "claude-opus-4"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-3-5-haiku-20241022", "claude-haiku-3-5"),
        ("claude-3-5-haiku-latest", "claude-haiku-3-5"),
    ],
)
def test_dated_ids_aliases_suffixes_and_prefixes_are_priced_like_their_model(name: str, model: str) -> None:
    assert ours(name) == ours(model)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "claude",
        "claude-haiku",
        "claude-haiku-6",
        "claude-haiku-4-5-2025100",
        "claude-haiku-4-5-preview",
        "xclaude-haiku-4-5",
        "Claude-Haiku-4-5",
        "claude-haiku-4-5\n",
        "claude-haiku-4-5-20251001\n",
        "-20251001",
        "[1m]",
        "anthropic/",
        "us.anthropic.claude-haiku-4-5-20251001-v1:0",
        "gpt-5",
        "claude-haiku-4-5" + "[1m]" * 100,
    ],
)
def test_a_model_that_is_not_known_has_no_price_rather_than_a_likely_one(name: str) -> None:
    assert OURS.for_model(name, NOW) is None


def test_a_batch_costs_half_and_says_so() -> None:
    usage = Usage(1001, 7, 500, 100, 1)
    for model in ("claude-haiku-5-5", "claude-haiku-3-5"):
        single, batch = ours(model), ours(model, batch=True)
        assert batch.cost(usage) == (single.cost(usage) or 0) / 2 > 0
        assert batch.priced_by == f"tokens:{model},batch"
    assert ours("claude-fable-5-2", batch=True).cost(EACH_PART["cached"]) is None


def test_made_up_names_do_not_fill_the_memory() -> None:
    prices = PriceTable.load({})
    for number in range(20_000):
        prices.for_model(f"claude-haiku-4-5-{number:08}", NOW)
        prices.for_model(f"{number}", NOW)
    assert sum(map(len, prices._lookup._known)) <= 1000


# --- unknown parts, and usage that cannot be


@pytest.mark.parametrize("part", ["cached", "cache_write_5m", "cache_write_1h"])
@pytest.mark.parametrize("how", ["null", "left out"])
def test_a_request_is_unpriced_only_if_it_used_a_part_without_a_price(part: str, how: str, tmp_path: Path) -> None:
    rates = {"input": "1", "output": "2", "cached": "0.1", "cache_write_5m": "1.25", "cache_write_1h": "2"}
    rates.pop(part)
    price = table(tmp_path, row(**rates, **({part: None} if how == "null" else {}))).for_model("m", NOW)
    assert price is not None
    for other, usage in EACH_PART.items():
        if other == part:
            assert (price.cost(usage), price.nano_usd(usage)) == (None, None)
            assert part in (price.unpriced_because(usage) or "")
        else:
            assert price.cost(usage) == Decimal(rates[other])
            assert price.unpriced_because(usage) is None


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        (Usage(10, 1, cached_tokens=11), "than its prompt has"),
        (Usage(10, 1, 4, 4, 3), "than its prompt has"),
        (Usage(-1, 1), "than its prompt has"),
        (Usage(10, -1), "negative"),
        (Usage(10, 1, cached_tokens=-5), "negative"),
        (Usage(10, 1, cache_write_5m_tokens=-5), "negative"),
        (Usage(10, 1, 15, -5, 0), "negative"),
        (Usage(10, 1, 5, 10, -5), "negative"),
    ],
)
def test_usage_that_cannot_be_is_unpriced_and_says_why(usage: Usage, told: str) -> None:
    price = ours("claude-haiku-4-5")
    assert (price.cost(usage), price.nano_usd(usage)) == (None, None)
    assert told in (price.unpriced_because(usage) or "")


# --- arithmetic

TOKENS = st.one_of(st.integers(0, 2000), st.integers(0, 3_000_000))
USAGES = st.builds(
    lambda plain, output, cached, five, hour, estimated: Usage(
        plain + cached + five + hour, output, cached, five, hour, estimated
    ),
    *[TOKENS] * 5,
    st.booleans(),
)
MODELS = st.sampled_from(sorted(OURS._lookup._prices.models))
TIMES = st.floats(at("2026-09-22"), NOW)


def slowly(model: str, when: float, usage: Usage, batch: bool = False) -> Fraction | None:
    """The cost by the rows of the file, read and worked out anew."""
    best: tuple[str, float, dict[str, object]] | None = None
    for found in pricing_file.read(pricing_file.OURS)["token_prices"]:
        since, bound = found.get("effective_from", ""), found.get("up_to_prompt_tokens", float("inf"))
        if found["model"] != model or (since and at(since) > when) or usage.input_tokens > bound:
            continue
        if best is None or (since, -bound) > best[:2]:
            best = (since, -bound, found)
    assert best is not None
    amounts = {
        "input": usage.uncached_tokens,
        "output": usage.output_tokens,
        "cached": usage.cached_tokens,
        "cache_write_5m": usage.cache_write_5m_tokens,
        "cache_write_1h": usage.cache_write_1h_tokens,
    }
    if any(tokens and best[2][part] is None for part, tokens in amounts.items()):
        return None
    total = sum((Fraction(str(best[2][part])) * tokens for part, tokens in amounts.items() if tokens), Fraction(0))
    return total / MILLION / (2 if batch else 1)


@given(MODELS, TIMES, USAGES, st.booleans())
def test_every_cost_is_the_exact_fraction(model: str, when: float, usage: Usage, batch: bool) -> None:
    price = ours(model, when, batch)
    expected, cost = slowly(model, when, usage, batch), price.cost(usage)
    if expected is None:
        assert cost is None
        assert price.unpriced_because(usage)
    else:
        assert cost is not None
        assert Fraction(cost) == expected >= 0
        assert price.nano_usd(usage) == -(-expected * 10**9 // 1) == money.nano_usd(cost)


@given(MODELS, TIMES, USAGES, TOKENS, TOKENS)
def test_no_request_within_its_bounds_costs_more_than_the_upper_bound(
    model: str, when: float, usage: Usage, more_input: int, more_output: int
) -> None:
    price = ours(model, when)
    bound = price.upper_bound_nano_usd(usage.input_tokens + more_input, usage.output_tokens + more_output)
    assert (price.nano_usd(usage) or 0) <= bound


def test_the_upper_bound_is_a_cost_that_can_be() -> None:
    price = ours("claude-haiku-4-5")
    assert price.upper_bound_nano_usd(1000, 100) == price.nano_usd(Usage(1000, 100, cache_write_1h_tokens=1000))


def test_the_upper_bound_takes_the_dearest_band_that_the_prompt_can_fall_into(tmp_path: Path) -> None:
    rows = [
        {"model": "m", "input": "9", "output": "9", "up_to_prompt_tokens": 10, "source": "x"},
        {"model": "m", "input": "1", "output": "1", "up_to_prompt_tokens": 20, "source": "x"},
        {"model": "m", "input": "90", "output": "5", "source": "x"},
    ]
    price = table(tmp_path, yaml.safe_dump({"token_prices": rows[::-1]})).for_model("m", NOW)
    assert price is not None
    assert price.upper_bound_nano_usd(10, 1) == 99_000
    assert price.upper_bound_nano_usd(20, 1) == 99_000  # It may turn out to have 10 tokens.
    assert price.upper_bound_nano_usd(21, 1) == 21 * 90_000 + 5000
    assert price.upper_bound_nano_usd(0, 0) == 0


COUNTS = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")


def together(usages: list[Usage]) -> Usage:
    return Usage(*(sum(getattr(usage, name) for usage in usages) for name in COUNTS))


@given(MODELS, st.lists(USAGES.filter(lambda usage: usage.input_tokens > 100_000), min_size=1, max_size=8))
def test_requests_of_one_band_cost_together_what_their_tokens_cost(model: str, usages: list[Usage]) -> None:
    costs = [ours(model).cost(usage) for usage in usages]
    known = [cost for cost in costs if cost is not None]
    assert ours(model).cost(together(usages)) == (sum(known) if len(known) == len(costs) else None)


@given(MODELS, USAGES)
def test_a_cost_does_not_depend_on_how_the_answer_came_nor_on_the_threads_precision(model: str, usage: Usage) -> None:
    estimated = replace(usage, estimated=not usage.estimated)
    cost = str(ours(model).cost(usage))
    with localcontext() as context:
        context.prec = 3
        assert str(ours(model).cost(estimated)) == cost


@given(st.integers(0, 10**30))
def test_whole_femto_dollars_become_decimals_without_loss(femto: int) -> None:
    amount = money.usd(femto)
    assert Fraction(amount) == Fraction(femto, 10**15)
    assert money.nano_usd(amount) == money.nano_of(femto) == -(-femto // 10**6)
    with localcontext() as context:
        context.prec = 60
        assert money.nano_of(femto) == int((amount * 10**9).to_integral_value(ROUND_CEILING))


# --- the user's file


def test_a_users_row_replaces_all_rows_of_its_model_and_leaves_the_others(tmp_path: Path) -> None:
    mine = table(tmp_path, row(model="claude-sonnet-5-5", input="1.5", output="7", source="our contract"))
    for when in (at("2026-09-01"), NOW):
        price = mine.for_model("claude-sonnet-5-5-latest", when)
        assert price is not None
        assert (price.cost(EACH_PART["input"]), price.source) == (Decimal("1.5"), "our contract")
        assert price.cost(EACH_PART["cached"]) is None
    assert mine.for_model("claude-haiku-4-5", NOW) == ours("claude-haiku-4-5")


def test_a_users_row_for_a_dated_id_is_for_that_id_alone(tmp_path: Path) -> None:
    mine = table(tmp_path, row(model="claude-haiku-4-5-20251001", input="0.9"))
    dated, base = mine.for_model("claude-haiku-4-5-20251001", NOW), mine.for_model("claude-haiku-4-5", NOW)
    assert dated is not None
    assert dated.cost(EACH_PART["input"]) == Decimal("0.9")
    assert base == ours("claude-haiku-4-5")


def test_a_file_with_gpu_prices_alone_keeps_our_token_prices(tmp_path: Path) -> None:
    mine = table(tmp_path, "gpu_hour_prices: []\n")
    assert mine.for_model("claude-haiku-4-5", NOW) == ours("claude-haiku-4-5")


def test_a_user_adds_names_and_batch_rules_of_another_vendor(tmp_path: Path) -> None:
    text = """
token_prices:
  - {model: other-1, input: 0.1, output: "0.000001", effective_from: 2026-01-01 12:00:00, source: list}
  - {model: priced-alone, input: 1, output: 1, source: list}
token_model_names: {prefixes: [vendor/], suffixes: [":[a-z]+"], aliases: {other: other-1, claude-opus-4-0: other-1}}
batch_multipliers:
  - {models: "other-*", multiplier: 0.25, source: list}
  - {models: "claude-haiku-*", multiplier: "0.4", source: contract}
"""
    mine = table(tmp_path, text)
    price = mine.for_model("vendor/other:free", NOW)
    assert price is not None
    assert price.priced_by == "tokens:other-1@2026-01-01T12:00:00Z"
    assert price.cost(Usage(3, 1)) == Decimal("0.000000300001")
    batch = mine.for_model("vendor/other:free", NOW, batch=True)
    assert batch is not None
    assert batch.cost(Usage(3, 1)) == Decimal("0.00000007500025")
    assert mine.for_model("priced-alone", NOW, batch=True) is None
    assert mine.for_model("claude-opus-4-0", NOW) == mine.for_model("other-1", NOW)
    haiku = mine.for_model("anthropic/claude-haiku-4-5-20251001", NOW, batch=True)
    assert haiku is not None
    assert haiku.cost(EACH_PART["input"]) == Decimal("0.4")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (row(input="-1"), "token_prices.0.input"),
        (row(input="0.0000001"), "token_prices.0.input"),
        (row(input=1e-7), "token_prices.0.input"),
        (row(input=float("nan")), "token_prices.0.input"),
        (row(output=None), "token_prices.0.output"),
        (row(inputs="1"), "inputs"),
        (row(effective_from="2026-02-30"), "2026-02-30"),
        (row(up_to_prompt_tokens=5), "more than 5 tokens"),
        (row(up_to_prompt_tokens=0), "up_to_prompt_tokens"),
        (yaml.safe_dump({"token_prices": yaml.safe_load(row())["token_prices"] * 2}), "token_prices.1"),
        ("token_model_names: {suffixes: ['[']}", "token_model_names.suffixes.0"),
        ("batch_multipliers: [{models: '*', multiplier: 0.3333, source: x}]", "batch_multipliers.0.multiplier"),
        ("{}", "top level"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_by_file_and_key(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError) as refused:
        table(tmp_path, text)
    assert "my prices.yaml" in refused.value.message
    assert told in refused.value.message


# --- reload


def test_a_changed_file_holds_from_the_next_refresh_on(tmp_path: Path) -> None:
    prices = table(tmp_path, row(input="1"))
    assert not prices.changed_on_disk()
    assert not prices.refresh()
    (tmp_path / "my prices.yaml").write_text(row(input="1.5"))
    assert prices.changed_on_disk()
    assert prices.refresh()
    assert not prices.refresh()
    price = prices.for_model("m", NOW)
    assert price is not None
    assert price.cost(EACH_PART["input"]) == Decimal("1.5")


@pytest.mark.parametrize("broken", ["token_prices: [", row(input="soon"), None])
def test_a_broken_new_file_keeps_the_old_prices_and_is_told_until_it_is_mended(
    broken: str | None, tmp_path: Path
) -> None:
    prices = table(tmp_path, row(input="1"))
    file = tmp_path / "my prices.yaml"
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    for _ in range(2):
        assert not prices.refresh()
        assert prices.problem is not None
        assert "my prices.yaml" in prices.problem.message
    price = prices.for_model("m", NOW)
    assert price is not None
    assert price.cost(EACH_PART["input"]) == 1
    file.write_text(row(input="2.25"))
    assert prices.refresh()
    assert prices.problem is None


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    prices = table(tmp_path, row(input="1"))
    file = tmp_path / "my prices.yaml"
    new = tmp_path / "new"
    new.write_text(row(input="3"))
    found = file.stat()
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
    new.replace(file)
    assert prices.refresh()


# --- speed


def test_pricing_a_request_takes_microseconds() -> None:
    usage = Usage(1000, 200, 300, 100, 50)

    def priced() -> None:
        price = OURS.for_model("claude-haiku-5-5", NOW)
        assert price is not None
        price.cost(usage)

    def seconds() -> float:
        begun = time.perf_counter()
        for _ in range(1000):
            priced()
        return (time.perf_counter() - begun) / 1000

    # About 1 µs; the best of several, because a busy machine is not what this is about.
    assert min(seconds() for _ in range(20)) < 10e-6

"""Reads the rows of token prices, and finds the model that a name means.

How several files go together and how names lead to models is said in references/pricing.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from inference_service import pricing_file
from inference_service.model_price import ModelPrice, Rates

_PARTS = ("input", "output", "cache_write_5m", "cache_write_1h", "cached")
_DECIMALS = 6
_FEMTO_PER_MILLIONTH = 1000
"""1e-15 USD for one token where a million of them cost 1e-6 USD."""
_FEMTO_PER_MICRO = 10**9
_BEGINNING = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class BatchRule:
    """A batch's request costs `thousandths` of the same request by itself, for models that match the pattern."""

    models: str
    thousandths: int


@dataclass(frozen=True)
class TermRule:
    """What a term that is not the standard does to the price of models that match the pattern: `thousandths` of it for
    that value, or `femto_each` (1e-15 USD) for each that is counted."""

    models: str
    term: str
    value: str | None
    thousandths: int = 0
    femto_each: int = 0


@dataclass(frozen=True)
class TokenPrices:
    """All that the files say of tokens. `models` has each model's prices, the earliest first."""

    models: Mapping[str, tuple[ModelPrice, ...]]
    prefixes: tuple[str, ...]
    suffixes: tuple[re.Pattern[str], ...]
    aliases: Mapping[str, str]
    batches: tuple[BatchRule, ...]

    def of(self, name: str, batch: bool) -> tuple[ModelPrice, ...]:
        """The prices of the model that the name means, the earliest first; none where it means none with a price."""
        for candidate in self._names(name):
            prices = self.models.get(candidate)
            if prices is not None:
                return self._of_batch(prices) if batch else prices
        return ()

    def _names(self, name: str) -> Iterator[str]:
        yield name
        yield self.aliases.get(name, name)
        for prefix in self.prefixes:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        while name:
            yield name
            yield self.aliases.get(name, name)
            ends = (found.start() for found in (suffix.search(name) for suffix in self.suffixes) if found)
            name = name[: next(ends, 0)]

    def _of_batch(self, prices: tuple[ModelPrice, ...]) -> tuple[ModelPrice, ...]:
        rule = next((rule for rule in self.batches if fnmatchcase(prices[0].model, rule.models)), None)
        return tuple(_reduced(price, rule.thousandths) for price in prices) if rule else ()


def read(files: Sequence[Path]) -> TokenPrices:
    """What the files say together; the first one goes before the others.

    Raises:
        ToolError: one cannot be read or breaks a rule; the message names file, key and rule.
    """
    models: dict[str, tuple[ModelPrice, ...]] = {}
    aliases: dict[str, str] = {}
    prefixes: list[str] = []
    suffixes: list[re.Pattern[str]] = []
    batches: list[BatchRule] = []
    terms: list[TermRule] = []
    for file in files:
        document = pricing_file.read(file)
        names = document.get("token_model_names", {})
        models = {**_models(document.get("token_prices", ()), file), **models}
        aliases = {**names.get("aliases", {}), **aliases}
        prefixes += names.get("prefixes", ())
        suffixes += [_suffix(text, number, file) for number, text in enumerate(names.get("suffixes", ()))]
        batches += [_batch_rule(row, n, file) for n, row in enumerate(document.get("batch_multipliers", ()))]
        terms += [_term_rule(row, n, file) for n, row in enumerate(document.get("term_prices", ()))]
    models = {model: tuple(_with_terms(price, terms) for price in prices) for model, prices in models.items()}
    return TokenPrices(models, tuple(prefixes), tuple(suffixes), aliases, tuple(batches))


def _models(rows: Sequence[Mapping[str, Any]], file: Path) -> dict[str, tuple[ModelPrice, ...]]:
    numbered: dict[tuple[str, datetime], list[int]] = {}
    for number, row in enumerate(rows):
        since = row.get("effective_from")
        at = _BEGINNING if since is None else pricing_file.moment(since, file, f"token_prices.{number}")
        numbered.setdefault((row["model"], at), []).append(number)
    models: dict[str, tuple[ModelPrice, ...]] = {}
    for (model, at), numbers in sorted(numbered.items()):
        price = _price(rows, numbers, None if at == _BEGINNING else at, file)
        models[model] = (*models.get(model, ()), price)
    return models


def _price(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], since: datetime | None, file: Path) -> ModelPrice:
    """The price that is made of the rows of one model and one moment: its bands."""
    key = f"token_prices.{numbers[-1]}"
    bands = sorted(
        (_rates(rows[number], f"token_prices.{number}", file) for number in numbers),
        key=lambda rates: (rates.up_to_prompt_tokens is None, rates.up_to_prompt_tokens or 0),
    )
    bounds = [rates.up_to_prompt_tokens for rates in bands]
    if len(set(bounds)) < len(bounds):
        message = "an earlier row has another price for the same model, prompts and moment"
        raise pricing_file.broken(file, key, message)
    if bounds[-1] is not None:
        message = f"prompts of more than {bounds[-1]} tokens have no price: add a row without up_to_prompt_tokens"
        raise pricing_file.broken(file, key, message)
    row = rows[numbers[0]]
    day = "" if since is None else f"@{pricing_file.day_or_moment(since)}"
    return ModelPrice(row["model"], tuple(bands), since, row["source"], f"tokens:{row['model']}{day}")


def _rates(row: Mapping[str, Any], key: str, file: Path) -> Rates:
    known = {part: _per_token(row[part], f"{key}.{part}", file) for part in _PARTS if row.get(part) is not None}
    return Rates(
        up_to_prompt_tokens=row.get("up_to_prompt_tokens"),
        input=known["input"],
        output=known["output"],
        cache_write_5m=known.get("cache_write_5m"),
        cache_write_1h=known.get("cache_write_1h"),
        cached=known.get("cached"),
    )


def _per_token(value: float | str, key: str, file: Path) -> int:
    """USD for a million tokens as 1e-15 USD for one."""
    millionths = _whole(pricing_file.number(value, file, key), _DECIMALS, key, file)
    return millionths * _FEMTO_PER_MILLIONTH


def _whole(amount: Decimal, decimals: int, key: str, file: Path) -> int:
    moved = amount.scaleb(decimals)
    if moved != int(moved):
        raise pricing_file.broken(file, key, f"{amount} has more than {decimals} decimals")
    return int(moved)


def _suffix(text: str, number: int, file: Path) -> re.Pattern[str]:
    try:
        return re.compile(f"(?:{text})\\Z")
    except re.error as error:
        key = f"token_model_names.suffixes.{number}"
        raise pricing_file.broken(file, key, f"{text} is no regular expression: {error}") from error


def _batch_rule(row: Mapping[str, Any], number: int, file: Path) -> BatchRule:
    key = f"batch_multipliers.{number}.multiplier"
    return BatchRule(row["models"], _whole(pricing_file.number(row["multiplier"], file, key), 3, key, file))


def _term_rule(row: Mapping[str, Any], number: int, file: Path) -> TermRule:
    key = f"term_prices.{number}"
    if "usd_each" in row:
        each = _whole(pricing_file.number(row["usd_each"], file, key), _DECIMALS, f"{key}.usd_each", file)
        return TermRule(row["models"], row["term"], None, femto_each=each * _FEMTO_PER_MICRO)
    thousandths = _whole(pricing_file.number(row["multiplier"], file, key), 3, f"{key}.multiplier", file)
    return TermRule(row["models"], row["term"], row["value"], thousandths=thousandths)


def _with_terms(price: ModelPrice, rules: Sequence[TermRule]) -> ModelPrice:
    multipliers: dict[tuple[str, str | int], int] = {}
    fees: dict[str, int] = {}
    for rule in rules:
        if fnmatchcase(price.model, rule.models):
            if rule.value is None:
                fees.setdefault(rule.term, rule.femto_each)
            else:
                multipliers.setdefault((rule.term, rule.value), rule.thousandths)
    return replace(price, multipliers=multipliers, fees=fees) if multipliers or fees else price


def _reduced(price: ModelPrice, thousandths: int) -> ModelPrice:
    """A batch's price. A token's price has a factor of 1000, so that nothing is rounded."""

    def part(rate: int | None) -> int | None:
        return None if rate is None else rate * thousandths // 1000

    bands = tuple(
        replace(
            rates,
            input=rates.input * thousandths // 1000,
            output=rates.output * thousandths // 1000,
            cache_write_5m=part(rates.cache_write_5m),
            cache_write_1h=part(rates.cache_write_1h),
            cached=part(rates.cached),
        )
        for rates in price.bands
    )
    return replace(price, bands=bands, priced_by=f"{price.priced_by},batch")

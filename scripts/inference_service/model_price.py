"""What a request costs by the tokens it used, at the price of one model.

All arithmetic is in whole 1e-15 USD, so that it is exact, and quick enough for each request. What has no price is None,
never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from inference_service import money
from inference_service.metering import Usage


@dataclass(frozen=True)
class Rates:
    """1e-15 USD for one token of each kind, in requests whose whole prompt has so many tokens at most (None: any).

    A part that is None is not known.
    """

    up_to_prompt_tokens: int | None
    input: int
    output: int
    cache_write_5m: int | None
    cache_write_1h: int | None
    cached: int | None

    def dearest_prompt_token(self) -> int:
        """The most that one token of the prompt can cost, in 1e-15 USD, of the parts whose price is known."""
        return max(self.input, self.cache_write_5m or 0, self.cache_write_1h or 0, self.cached or 0)


@dataclass(frozen=True)
class ModelPrice:
    """The price of one model from a moment on. `bands` are in the order of their prompts' size; the last has no bound.

    `effective_from` is None where the price holds from the beginning. `priced_by` names all this in a request's row.
    `multipliers` (thousandths, by term and value) and `fees` (1e-15 USD for each, by term) are for the terms that are
    not the standard (`Usage.terms`).
    """

    model: str
    bands: tuple[Rates, ...]
    effective_from: datetime | None
    source: str
    priced_by: str
    multipliers: Mapping[tuple[str, str | int], int] = field(default_factory=dict)
    fees: Mapping[str, int] = field(default_factory=dict)

    def cost(self, usage: Usage) -> Decimal | None:
        """USD, exactly; None where the request cannot be priced (`unpriced_because`)."""
        amount = self.femto_usd(usage)
        return None if amount is None else money.usd(amount)

    def nano_usd(self, usage: Usage) -> int | None:
        """1e-9 USD, rounded up; None where the request cannot be priced."""
        amount = self.femto_usd(usage)
        return None if amount is None else money.nano_of(amount)

    def femto_usd(self, usage: Usage) -> int | None:
        """1e-15 USD, exactly; None where the request cannot be priced."""
        prompt, output = usage.input_tokens, usage.output_tokens
        cached, written_5m, written_1h = usage.cached_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
        rates = self._rates(prompt)
        plain = prompt - cached - written_5m - written_1h
        if plain < 0 or output < 0:
            return None
        amount = plain * rates.input + output * rates.output
        # Most requests leave the cache alone, and each part that was not used may be without a price.
        if cached:
            if rates.cached is None or cached < 0:
                return None
            amount += cached * rates.cached
        if written_5m:
            if rates.cache_write_5m is None or written_5m < 0:
                return None
            amount += written_5m * rates.cache_write_5m
        if written_1h:
            if rates.cache_write_1h is None or written_1h < 0:
                return None
            amount += written_1h * rates.cache_write_1h
        return self._by_terms(amount, usage.terms) if usage.terms else amount

    def unpriced_because(self, usage: Usage) -> str | None:
        """Why this request has no cost; None where it has one."""
        if self.femto_usd(usage) is not None:
            return None
        rates = self._rates(usage.input_tokens)
        parts = {
            "cached": (usage.cached_tokens, rates.cached),
            "cache_write_5m": (usage.cache_write_5m_tokens, rates.cache_write_5m),
            "cache_write_1h": (usage.cache_write_1h_tokens, rates.cache_write_1h),
        }
        if usage.output_tokens < 0 or any(tokens < 0 for tokens, _ in parts.values()):
            return f"its usage has a negative number of tokens: {usage}"
        if usage.uncached_tokens < 0:
            return f"more tokens were read from and written to the cache than its prompt has: {usage}"
        unknown = [name for name, (tokens, rate) in parts.items() if tokens and rate is None]
        unknown += [f"{name}={value}" for name, value in usage.terms if self._by_terms(0, ((name, value),)) is None]
        return f"for {self.model} the price of {' and '.join(unknown)} is not known"

    def upper_bound_nano_usd(self, input_tokens: int, output_tokens: int) -> int:
        """The most, in 1e-9 USD and rounded up, that a request of at most so many tokens can cost.

        It is the dearest of all bands that such a prompt can fall into, every token of it read, written or sent in the
        dearest way, on the dearest terms. A part whose price is not known is not in it: a request that uses one has no
        cost at all. Nor are fees, because nobody knows how often they will be due.
        """
        most = smallest = 0
        for rates in self.bands:
            if smallest and input_tokens < smallest:
                break
            bound = rates.up_to_prompt_tokens
            prompt = input_tokens if bound is None or input_tokens < bound else bound
            amount = prompt * rates.dearest_prompt_token() + output_tokens * rates.output
            if amount > most:
                most = amount
            smallest = (bound or 0) + 1
        for name in {name for name, _ in self.multipliers}:
            dearest = max(multiplier for (of, _), multiplier in self.multipliers.items() if of == name)
            most = -(-most * max(1000, dearest) // 1000)
        return money.nano_of(most)

    def _by_terms(self, amount: int, terms: Iterable[tuple[str, str | int]]) -> int | None:
        """The amount on these terms; None where one of them has no price."""
        fees = 0
        for name, value in terms:
            if isinstance(value, int):
                fee = self.fees.get(name)
                if fee is None:
                    return None
                fees += fee * value
            else:
                multiplier = self.multipliers.get((name, value))
                if multiplier is None:
                    return None
                # Exact for one term, because a token's price has a factor of 1000; else up to 1e-15 USD more.
                amount = -(-amount * multiplier // 1000)
        return amount + fees

    def _rates(self, prompt_tokens: int) -> Rates:
        for rates in self.bands:
            if rates.up_to_prompt_tokens is None or prompt_tokens <= rates.up_to_prompt_tokens:
                return rates
        raise AssertionError("the last band has no bound")

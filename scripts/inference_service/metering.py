"""What a request used, in one form for every wire format.

OpenAI counts cached tokens into `prompt_tokens`, Anthropic counts them beside `input_tokens`. A price table needs the
parts, a person the sum: here are both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens of one request. `input_tokens` is all of the prompt: what was read from the cache and written to it is in
    it, and counted apart beside it. `estimated`: nobody reported them, they were worked out from what was produced."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    estimated: bool = False

    @property
    def uncached_tokens(self) -> int:
        """The part of the prompt that is priced as plain input."""
        return self.input_tokens - self.cached_tokens - self.cache_write_5m_tokens - self.cache_write_1h_tokens

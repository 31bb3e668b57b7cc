"""What a request used, in one form for every wire format.

OpenAI counts cached tokens into `prompt_tokens`, Anthropic counts them beside `input_tokens`. A price table needs the
parts, a person the sum: here are both. A count that is no whole number of at least 0 is no count: the usage is unknown
then (None), never 0.

Where nobody reported the usage (a stream that was aborted before its last event), it is estimated by one rule:
BYTES_PER_TOKEN bytes of UTF-8 text are a token, and every event of a stream that brought text at least one. English
text has about 4 bytes to a token, so that the rule is a little too high rather than too low.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES_PER_TOKEN = 3
"""Of text, in estimates."""
# A chat template, and the instructions for the use of tools: up to 804 tokens by
# https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview
PROMPT_OVERHEAD_TOKENS = 1_000
"""What a vendor adds to a prompt that is not in the request."""
TOKENS_OF_LINKED_MEDIUM = 5_000
"""The most that an image given by its URL costs: those few bytes say nothing of its size."""
LARGEST_PROMPT_TOKENS = 1_000_000
"""No model's context is longer, so that no request can use more."""

# Fields of Anthropic's `usage` whose other values have prices of their own, and the values that have not
# (https://platform.claude.com/docs/en/build-with-claude/fast-mode and …/data-residency).
_STANDARD_TERMS = (
    ("service_tier", (None, "standard")),
    ("speed", (None, "standard")),
    ("inference_geo", (None, "global", "not_available", "")),
)


@dataclass(frozen=True)
class Usage:
    """Tokens of one request. `input_tokens` is all of the prompt: what was read from the cache and written to it is in
    it, and counted apart beside it. `estimated`: nobody reported them, they were worked out from what was produced.
    `terms` is what the vendor reports beside the tokens that bears on their price, where it is not the standard."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    estimated: bool = False
    terms: tuple[tuple[str, str | int], ...] = ()

    @property
    def uncached_tokens(self) -> int:
        """The part of the prompt that is priced as plain input."""
        return self.input_tokens - self.cached_tokens - self.cache_write_5m_tokens - self.cache_write_1h_tokens


def from_openai(usage: Mapping[str, Any]) -> Usage | None:
    """A `usage` of the OpenAI shape; None if it does not count prompt and completion."""
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt is None or completion is None:
        return None
    details = usage.get("prompt_tokens_details")
    if not details:
        return Usage(prompt, completion)
    # Parts that are more than the whole would make the plain input negative.
    cached = min(_count(details, "cached_tokens") or 0, prompt)
    written = min(_count(details, "cache_write_tokens") or 0, prompt - cached)
    return Usage(prompt, completion, cached, written)


def from_anthropic(usage: Mapping[str, Any]) -> Usage | None:
    """A `usage` of the Anthropic shape; None if it does not count input and output.

    Cache writes whose time to live is not told are those of five minutes, which is the vendor's default.
    """
    uncached, output = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    if uncached is None or output is None:
        return None
    read = _count(usage, "cache_read_input_tokens") or 0
    written = _count(usage, "cache_creation_input_tokens") or 0
    split = usage.get("cache_creation")
    if not split and not written:
        return Usage(uncached + read, output, read, terms=_terms(usage))
    one_hour = _count(split, "ephemeral_1h_input_tokens") or 0
    written = max(written, one_hour + (_count(split, "ephemeral_5m_input_tokens") or 0))
    return Usage(uncached + read + written, output, read, written - one_hour, one_hour, terms=_terms(usage))


def merge(earlier: Mapping[str, Any] | None, later: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `usage` of a stream's events so far: counts are cumulative, so that the last one told wins."""
    if not earlier:
        return later
    return {**earlier, **{name: value for name, value in later.items() if value is not None}}


def estimate(reported: Usage | None, *, body_bytes: int, produced_bytes: int, deltas: int) -> Usage:
    """The usage of a stream that ended early, marked as estimated.

    What was `reported` until then is kept (Anthropic tells the input at the start of a stream, and a small part of the
    output). `body_bytes` are those of the request's body, `produced_bytes` those of the text that was streamed, in
    `deltas` events.
    """
    produced = max(deltas, tokens_of_text(produced_bytes))
    if reported is None:
        return Usage(tokens_of_text(body_bytes), produced, estimated=True)
    return Usage(
        reported.input_tokens,
        max(reported.output_tokens, produced),
        reported.cached_tokens,
        reported.cache_write_5m_tokens,
        reported.cache_write_1h_tokens,
        estimated=True,
        terms=reported.terms,
    )


def tokens_of_text(text_bytes: int) -> int:
    """The estimated tokens of so many bytes of UTF-8 text, rounded up."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def input_upper_bound(body_bytes: int, linked_media: int = 0) -> int:
    """More input tokens than a request whose body has so many bytes can use.

    No tokenizer makes more than one token of a byte. `linked_media`: images given by URL, which cost more tokens than
    their URL has bytes.
    """
    bound = body_bytes + PROMPT_OVERHEAD_TOKENS + linked_media * TOKENS_OF_LINKED_MEDIUM
    return bound if bound < LARGEST_PROMPT_TOKENS else LARGEST_PROMPT_TOKENS


def _terms(usage: Mapping[str, Any]) -> tuple[tuple[str, str | int], ...]:
    terms: tuple[tuple[str, str | int], ...] = ()
    for name, standard in _STANDARD_TERMS:
        value = usage.get(name)
        if value not in standard:
            terms += ((name, str(value)),)
    tools = usage.get("server_tool_use")
    searches = _count(tools, "web_search_requests") if tools else None
    return (*terms, ("web_search_requests", searches)) if searches else terms


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else None

"""Where the upstream speaks the other wire format: its requests, answers, streams and errors, both ways."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

import orjson

from inference_service.gateway.refusals import OPENAI, Refusal
from inference_service.gateway.translation import (
    anthropic_answer,
    anthropic_request,
    anthropic_stream,
    errors,
    facts,
    openai_answer,
    openai_request,
    openai_stream,
)
from inference_service.gateway.translation.fields import Untranslatable

if TYPE_CHECKING:
    from inference_service.gateway.exchange import Exchange
    from inference_service.gateway.tapping import Shape, StreamReader

_MOST_ALTERNATIVES = 128
# No model produces as much; a larger number would only overflow what counts it.
_MOST_TOKENS = 10_000_000


def request(document: dict[str, Any], asked: Shape, model: str) -> dict[str, Any]:
    """The request in the other format than the one that it was asked in, for that model.

    Raises:
        Refusal: 400 with the field that cannot be said there.
    """
    try:
        if asked == OPENAI:
            return openai_request.to_anthropic({**document, "model": model})
        return anthropic_request.to_openai(document)
    except Untranslatable as error:
        raise Refusal(400, "untranslatable", str(error), param=error.field) from None


def answer(body: bytes, exchange: Exchange) -> bytes:
    """An answer that was not streamed, in the format that was asked for.

    Raises:
        Refusal: 502 where the upstream's answer is not what its format says.
    """
    try:
        document = orjson.loads(body)
        if exchange.shape == OPENAI:
            return orjson.dumps(openai_answer.from_anthropic(document, created=int(time())))
        return orjson.dumps(
            anthropic_answer.from_openai(document, answer_id=_message_id(exchange), model=exchange.asked_model)
        )
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise Refusal(
            502, "upstream_bad_answer", f"the upstream's answer is not in its own format: {error!r}"
        ) from None


def stream(exchange: Exchange, include_usage: bool) -> StreamReader:
    """Who turns the upstream's stream into the one that was asked for."""
    if exchange.shape == OPENAI:
        return openai_stream.AnthropicToOpenAI(created=int(time()), include_usage=include_usage)
    return anthropic_stream.OpenAIToAnthropic(answer_id=_message_id(exchange), model=exchange.asked_model)


def error(status: int, body: bytes, exchange: Exchange) -> tuple[int, bytes]:
    """The upstream's error in the format that was asked for."""
    return errors.body(exchange.shape, status, body, exchange.row.request_id)


def most_output(document: dict[str, Any]) -> int:
    """The most tokens that the answer can have, all of its alternatives together.

    Raises:
        Refusal: 400 for a limit that is no number.
    """
    limit = document.get("max_completion_tokens")
    name = "max_completion_tokens"
    if limit is None:
        limit, name = document.get("max_tokens"), "max_tokens"
    if limit is None:
        limit = facts.load().default_max_tokens
    alternatives = document.get("n")
    if alternatives is None:
        alternatives = 1
    if type(limit) is not int or limit < 0:
        raise Refusal(400, "invalid_request", f"{name} is no number of tokens", param=name)
    if type(alternatives) is not int or not 1 <= alternatives <= _MOST_ALTERNATIVES:
        raise Refusal(400, "invalid_request", f"n is no number from 1 to {_MOST_ALTERNATIVES}", param="n")
    return min(limit, _MOST_TOKENS) * alternatives


def _message_id(exchange: Exchange) -> str:
    return f"msg_{exchange.row.request_id.removeprefix('req_')}"

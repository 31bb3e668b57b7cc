"""The official SDKs as readers of bytes: what a client of the gateway makes of a stream or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anthropic
import httpx
import httpx2
import openai

if TYPE_CHECKING:
    from anthropic.types import Message
    from openai.types.chat import ChatCompletionChunk, ParsedChatCompletion


def openai_client(status: int, body: bytes, content_type: str = "application/json") -> openai.OpenAI:
    """A client whose every request is answered so."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=body, headers={"content-type": content_type})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)


def anthropic_client(status: int, body: bytes, content_type: str = "application/json") -> anthropic.Anthropic:
    """A client whose every request is answered so."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, headers={"content-type": content_type})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return anthropic.Anthropic(api_key="k", base_url="http://gateway", http_client=http, max_retries=0)


def openai_chunks(stream: bytes) -> list[ChatCompletionChunk]:
    """The chunks that the OpenAI SDK reads from the bytes."""
    client = openai_client(200, stream, "text/event-stream")
    return list(client.chat.completions.create(model="m", messages=[], stream=True))


def openai_accumulated(stream: bytes) -> ParsedChatCompletion[None]:
    """The answer that the OpenAI SDK puts together from the bytes."""
    client = openai_client(200, stream, "text/event-stream")
    with client.chat.completions.stream(model="m", messages=[]) as events:
        return events.get_final_completion()


def anthropic_accumulated(stream: bytes, on_text: Callable[[str], None] = lambda _: None) -> Message:
    """The answer that the Anthropic SDK puts together from the bytes."""
    client = anthropic_client(200, stream, "text/event-stream")
    with client.messages.stream(model="m", max_tokens=1, messages=[]) as events:
        for text in events.text_stream:
            on_text(text)
        return events.get_final_message()

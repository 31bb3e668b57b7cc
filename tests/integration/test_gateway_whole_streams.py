"""A service that does not stream is streamed from all the same: SDKs that ask for a stream get one, of either shape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest
import requests
from doubles.tao_server import TaoServer
from gateway_process import CHAT, Gateway, serving_gateway

JOB_ID = "7b1f7c2e-5d0f-4c58-9d0c-1f2a3b4c5d6e"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with TaoServer(job_id=JOB_ID) as server, serving_gateway(folder) as gateway:
        gateway.register(JOB_ID, server.url, network_arch="tao-dataservices")
        yield gateway


def whole(gateway: Gateway) -> str:
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.caller_key("app"), max_retries=0)
    answer = client.chat.completions.create(model=JOB_ID, messages=[{"role": "user", "content": "hello"}])
    return answer.choices[0].message.content or ""


def test_the_openai_sdk_reads_a_stream(gateway: Gateway) -> None:
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.caller_key("app"), max_retries=0)
    chunks = list(
        client.chat.completions.create(model=JOB_ID, messages=[{"role": "user", "content": "hello"}], stream=True)
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole(gateway) != ""
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"


def test_the_anthropic_sdk_reads_a_stream(gateway: Gateway) -> None:
    client = anthropic.Anthropic(base_url=gateway.url, api_key=gateway.caller_key("app"), max_retries=0)
    with client.messages.stream(model=JOB_ID, max_tokens=50, messages=[{"role": "user", "content": "hello"}]) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == whole(gateway)
    assert message.stop_reason == "end_turn"


def test_its_row_says_that_it_was_streamed(gateway: Gateway) -> None:
    answer = requests.post(
        gateway.url + CHAT,
        json={"model": JOB_ID, "messages": [{"role": "user", "content": "hello"}], "stream": True},
        headers={"Authorization": f"Bearer {gateway.caller_key('app')}"},
        timeout=30,
    )
    assert answer.text.rstrip().endswith("data: [DONE]")
    row = gateway.row(answer.headers["x-request-id"])
    assert (row["http_status"], row["error_type"], row["stream"]) == (200, None, 1)
    assert row["output_tokens"] > 0

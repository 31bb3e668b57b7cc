"""What stands between the gateway and an upstream has pages of its own: they become errors of the API asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anthropic
import openai
import pytest
from gateway_process import Gateway, serving_gateway

PAGE = b"<html><body><h1>403 Forbidden</h1>the proxy of the house</body></html>"


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(403)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with serving_gateway(folder, services={"service-1": f"http://127.0.0.1:{server.server_address[1]}"}) as gateway:
            yield gateway
    finally:
        server.shutdown()
        server.server_close()


def test_the_openai_sdk_reads_it(gateway: Gateway) -> None:
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.caller_key("app"), max_retries=0)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(model="service-1", messages=[{"role": "user", "content": "hello"}])
    assert isinstance(caught.value.body, dict)
    assert "the proxy of the house" in caught.value.body["message"]


def test_the_anthropic_sdk_reads_it(gateway: Gateway) -> None:
    client = anthropic.Anthropic(base_url=gateway.url, api_key=gateway.caller_key("app"), max_retries=0)
    with pytest.raises(anthropic.PermissionDeniedError) as caught:
        client.messages.create(model="service-1", max_tokens=9, messages=[{"role": "user", "content": "hello"}])
    assert isinstance(caught.value.body, dict)
    assert "the proxy of the house" in caught.value.body["error"]["message"]

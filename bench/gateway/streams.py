"""Streams: how much later the first token comes than without the gateway, and what a thousand open ones hold in memory.

The upstream is a small server of this program's own: it sends the first event at once and the rest when it is told to.

    python bench/gateway/streams.py           about 20 s
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepared import MODEL, Prepared, command, prepare

PORT = 18098
OPEN_STREAMS = 1000
FIRST_TOKENS = 300

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(document: object) -> bytes:
    data = b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


_TOKEN = _event({"choices": [{"index": 0, "delta": {"content": "token "}, "finish_reason": None}]})
_END = (
    _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    + _event({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 50, "total_tokens": 70}})
    + _event(b"[DONE]")
    + b"0\r\n\r\n"
)


class Upstream:
    """Answers with one token, and with the end once `finish` is set."""

    def __init__(self) -> None:
        self.finish = asyncio.Event()
        self.url = ""

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(_HEAD + _TOKEN)
                await self.finish.wait()
                writer.write(_END)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # Cancelled: this program is at its end.
            writer.close()


async def first_token(url: str, key: str) -> tuple[float, asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream on a connection of its own; seconds until its first token, and the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(
        {"model": MODEL, "stream": True, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    )
    began = time.perf_counter()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    )
    await reader.readuntil(b"token ")
    return time.perf_counter() - began, reader, writer


def resident_mb(pid: int) -> float:
    """The process's memory in MB (10^6 bytes)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024 / 1e6


async def measure(upstream: Upstream, prepared: Prepared, url: str, pid: int) -> dict[str, float]:
    """Both figures."""
    upstream.finish.set()
    times: dict[str, list[float]] = {"direct": [], "gateway": []}
    for _ in range(FIRST_TOKENS):
        for name, address in (("direct", upstream.url), ("gateway", url)):
            seconds, _, writer = await first_token(address, prepared.key)
            times[name].append(seconds)
            writer.close()
    upstream.finish.clear()
    before = resident_mb(pid)
    streams = await asyncio.gather(*(first_token(url, prepared.key) for _ in range(OPEN_STREAMS)))
    held = resident_mb(pid)
    upstream.finish.set()
    for _, reader, writer in streams:
        await reader.readuntil(b"[DONE]")
        writer.close()
    return {
        "direct_first_token_ms": round(1000 * statistics.median(times["direct"]), 4),
        "gateway_first_token_ms": round(1000 * statistics.median(times["gateway"]), 4),
        "idle_mb": round(before, 1),
        "open_streams": OPEN_STREAMS,
        "open_streams_mb": round(held, 1),
        "kb_per_stream": round(1000 * (held - before) / OPEN_STREAMS, 1),
    }


async def run() -> None:
    """Print the figures, and the same as one JSON line."""
    upstream = Upstream()
    await upstream.start()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        prepared = prepare(Path(name), upstream.url)
        gateway = subprocess.Popen(command(PORT), env=prepared.environ, stdout=subprocess.PIPE, text=True)
        try:
            assert gateway.stdout is not None
            url = json.loads(await asyncio.to_thread(gateway.stdout.readline))["url"]
            figures = await measure(upstream, prepared, url, gateway.pid)
        finally:
            gateway.terminate()
            gateway.wait()
    added = figures["gateway_first_token_ms"] - figures["direct_first_token_ms"]
    ratio = figures["gateway_first_token_ms"] / figures["direct_first_token_ms"]
    print(
        f"first token, on a new connection each: {figures['gateway_first_token_ms']} ms against"
        f" {figures['direct_first_token_ms']} ms direct: {added:.3f} ms later, x{ratio:.2f}"
    )
    print(
        f"{OPEN_STREAMS} open streams: {figures['open_streams_mb']} MB against {figures['idle_mb']} MB without,"
        f" x{figures['open_streams_mb'] / figures['idle_mb']:.2f}; {figures['kb_per_stream']} kB each"
    )
    print(json.dumps({"bench": "gateway_streams", **figures, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        sys.exit(130)

"""A service that reads requests away as fast as it can and answers with their size: the far end of request_body.py.

Run as `python byte_sink.py JOB_ID`; prints its port. It says that it is ready, and takes bodies with a Content-Length
or in chunks (whose framing it counts too, and whose end it finds by its bytes: enough for a body that ends in `}`).
"""

from __future__ import annotations

import json
import socket
import sys

_LAST_CHUNK = b"0\r\n\r\n"


def serve(listener: socket.socket, job_id: str) -> None:
    """Serve one connection after the other, for ever."""
    block = memoryview(bytearray(1 << 20))
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(600)
            head, rest = _head(peer)
            if head[b""].startswith(b"GET"):
                _answer(peer, {"status": "ready", "job_id": job_id})
                continue
            if b"expect" in head:
                peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            count = _read_away(peer, block, rest, int(head.get(b"content-length", 0)))
            _answer(peer, {"choices": [{"message": {"content": str(count)}, "finish_reason": "stop"}]})


def _head(peer: socket.socket) -> tuple[dict[bytes, bytes], bytes]:
    """The header fields, the request line under b"", and the first bytes of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += peer.recv(1 << 16)
    head, _, rest = data.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    pairs = (field.split(b":", 1) for field in fields)
    return {b"": line, **{name.lower(): value.strip() for name, value in pairs}}, rest


def _read_away(peer: socket.socket, block: memoryview, rest: bytes, length: int) -> int:
    count, tail = len(rest), rest[-len(_LAST_CHUNK) :]
    while count < length if length else tail != _LAST_CHUNK:
        got = peer.recv_into(block)
        if not got:
            break
        count += got
        tail = (tail + bytes(block[max(0, got - len(_LAST_CHUNK)) : got]))[-len(_LAST_CHUNK) :]
    return count


def _answer(peer: socket.socket, document: dict[str, object]) -> None:
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    peer.sendall(head % len(body) + body)


if __name__ == "__main__":
    server = socket.create_server(("127.0.0.1", 0), backlog=16)
    print(server.getsockname()[1], flush=True)
    serve(server, sys.argv[1])

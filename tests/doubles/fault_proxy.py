"""A proxy in front of a real API server that answers wrongly when it is told to.

What it makes up follows Kubernetes' API conventions: errors are Status objects, 429 carries Retry-After, a watch that
is too old ends with an ERROR event of code 410. All else passes unchanged, watches and port-forwards included.
"""

from __future__ import annotations

import json
import re
import select
import socket
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import urllib3

_HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "host", "keep-alive")


@dataclass
class Fault:
    """What becomes of the next `times` requests of that method whose path matches `path`.

    `kind`: `429` and `500` are answered without the API server knowing; `lost` reaches it, but the answer is a dropped
    connection; `dropped` ends a watch at once; `gone` answers a watch with 410 as its first event.
    """

    method: str
    path: str
    kind: str
    times: int = 1
    retry_after: int = 1
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        return self.hits < self.times and method == self.method and re.search(self.path, path) is not None


@dataclass
class FaultProxy:
    """Serves on 127.0.0.1 as `url` while it is used as a context; `seen` are the requests that came, in their order."""

    upstream: str
    certificate: tuple[str, str, str]
    """Files: the API server's CA, the client's certificate, its key."""
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> FaultProxy:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        authority, certificate, key = self.certificate
        self.pool = urllib3.PoolManager(ca_certs=authority, cert_file=certificate, key_file=key, maxsize=20)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str) -> int:
        return sum(1 for had, where in self.seen if had == method and re.search(path, where))

    def next_fault(self, method: str, path: str) -> Fault | None:
        self.seen.append((method, path))
        for fault in self.faults:
            if fault.matches(method, path):
                fault.hits += 1
                return fault
        return None

    def dial(self) -> ssl.SSLSocket:
        authority, certificate, key = self.certificate
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
        parts = urlsplit(self.upstream)
        raw = socket.create_connection((str(parts.hostname), parts.port or 443))
        return context.wrap_socket(raw, server_hostname=parts.hostname)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        fault = self.proxy.next_fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        if self.headers.get("Upgrade"):
            self._tunnel()
        elif fault is None:
            self._pass_on(body)
        elif fault.kind in ("429", "500"):
            self._refuse(int(fault.kind), fault)
        elif fault.kind == "lost":
            self._ask(body).read()
            self._hang_up()
        elif fault.kind == "dropped":
            self._hang_up()
        elif fault.kind == "gone":
            self._gone()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _ask(self, body: bytes | None) -> urllib3.BaseHTTPResponse:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = self.proxy.upstream + self.path
        return self.proxy.pool.request(
            self.command, url, body=body, headers=headers, preload_content=False, retries=False, redirect=False
        )

    def _pass_on(self, body: bytes | None) -> None:
        answer = self._ask(body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in answer.stream(65536, decode_content=False):
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            answer.close()

    def _refuse(self, status: int, fault: Fault) -> None:
        reason = {429: "TooManyRequests", 500: "InternalError"}[status]
        message = {429: "too many requests, please try again later", 500: "etcdserver: leader changed"}[status]
        document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status}
        self._send(
            status, {**document, "message": message}, {"Retry-After": str(fault.retry_after)} if status == 429 else {}
        )

    def _gone(self) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}
        self._send(200, {"type": "ERROR", "object": {**status, "message": "too old resource version"}}, {})

    def _send(self, status: int, document: Any, headers: dict[str, str]) -> None:
        body = json.dumps(document).encode() + b"\n"
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _tunnel(self) -> None:
        self.close_connection = True
        with self.proxy.dial() as upstream:
            lines = [f"{self.command} {self.path} HTTP/1.1", f"Host: {urlsplit(self.proxy.upstream).netloc}"]
            lines += [f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "host"]
            upstream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            other: dict[socket.socket, socket.socket] = {self.connection: upstream, upstream: self.connection}
            while True:
                ready = [upstream] if upstream.pending() else select.select(list(other), [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    other[source].sendall(data)

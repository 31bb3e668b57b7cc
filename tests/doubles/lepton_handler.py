"""The HTTP side of the double of a Lepton workspace (lepton_api.py): its API, and the gateway before its endpoints."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import requests
from doubles.lepton_wire import Refused

if TYPE_CHECKING:
    from doubles.lepton_api import Fault, LeptonApi


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, double: LeptonApi) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.double = double

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # who is killed in the middle of a request leaves it there


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _any(self) -> None:
        target = urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if target.path.startswith("/at/"):
            self._gateway(target.path, data)
        elif not target.path.startswith(self.server.double.path + "/"):
            self._json(404, {"code": "WorkspaceNotFound", "message": "no such workspace"})
        elif self.headers.get("Authorization") != f"Bearer {self.server.double.token}":
            self._json(401, {"code": "Unauthorized", "message": "invalid token"})
        else:
            path = target.path.removeprefix(self.server.double.path)
            self._api(path, parse_qs(target.query), json.loads(data) if data else None)

    do_GET = _any  # noqa: N815
    do_POST = _any  # noqa: N815
    do_PUT = _any  # noqa: N815
    do_PATCH = _any  # noqa: N815
    do_DELETE = _any  # noqa: N815

    def _api(self, path: str, query: dict[str, list[str]], body: Any) -> None:
        double = self.server.double
        double.note(self.command, path, body)
        fault = self._fault(path)
        if fault is not None and not fault.done:
            if fault.status:
                self._json(fault.status, {"code": "Double", "message": "as the test wants it"})
                return
            self._interrupt(fault)
        if re.fullmatch(r"/(endpoints|deployments)/[^/]+/replicas/[^/]+/log", path):
            self._stream(path.split("/")[2])
            return
        try:
            status, document = double.answer(self.command, path, query, body)
        except Refused as refused:
            status, document = refused.status, {"code": "Refused", "message": refused.message}
        if fault is not None and fault.done:
            self._interrupt(fault)
        self._json(status, document)

    def _fault(self, path: str) -> Fault | None:
        for fault in self.server.double.faults:
            if fault.times > 0 and fault.method == self.command and re.fullmatch(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _interrupt(self, fault: Fault) -> None:
        fault.reached.set()
        if fault.hold:
            fault.release.wait(60)
        if fault.drop:
            self.close_connection = True
            raise ConnectionAbortedError("dropped")

    def _stream(self, name: str) -> None:
        """The replica's log, and what is added to it, as long as the endpoint and the connection live."""
        double = self.server.double
        endpoint = double.endpoints[name]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while not double.closing.is_set() and endpoint.deleted is None:
            for chunk in endpoint.log[sent:]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                sent += 1
            double.closing.wait(0.05)
        self.wfile.write(b"0\r\n\r\n")

    def _gateway(self, path: str, data: bytes) -> None:
        _, _, name, *rest = path.split("/")
        inner = "/" + "/".join(rest)
        endpoint = self.server.double.endpoints.get(name)
        if endpoint is None or endpoint.deleted is not None:
            self._text(404, "no such endpoint")
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if endpoint.tokens and given not in endpoint.tokens:
            status = 401
            self._text(status, "unauthorized")
        elif self.server.double.state_of(endpoint) != "Ready":
            status = 503
            self._text(status, "no healthy upstream")
        else:
            kept = {"Content-Type": self.headers.get("Content-Type", "")} if data else {}
            answer = requests.request(self.command, endpoint.server.url + inner, data=data, headers=kept, timeout=60)
            status = answer.status_code
            self._send(status, answer.content, answer.headers.get("Content-Type", ""))
        endpoint.requests.append((inner, status))

    def _json(self, status: int, document: Any) -> None:
        self._send(status, json.dumps(document).encode(), "application/json")

    def _text(self, status: int, text: str) -> None:
        self._send(status, text.encode(), "text/plain")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

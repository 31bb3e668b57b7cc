"""The HTTP side of the double of a TAO microservice (tao_server.py): reads requests, words the answers."""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from doubles import request_bodies
from doubles.tao_wire import (
    CHAT,
    CLOUD,
    FORWARDED,
    INFERENCE,
    LIVENESS,
    MIME_TYPES,
    MOST_MEDIA_BYTES,
    READINESS,
    STATES,
    STATUS,
    Answer,
    Request,
)

if TYPE_CHECKING:
    from doubles.tao_server import TaoServer


class HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    double: TaoServer

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HTTPServer

    @property
    def double(self) -> TaoServer:
        return self.server.double

    def do_GET(self) -> None:
        self.double.polls.append((time.monotonic(), self.path))
        scripted = self.double.scripted(self.path)
        if scripted is not None:
            self._give(scripted, Request(self.path, {}))
        elif self.path == READINESS:
            self._json(*self._readiness())
        elif self.path == LIVENESS:
            self._json(200, self._liveness())
        elif self.path == STATUS:
            self._json(200, self._status())
        else:
            self._send(404, b"<!doctype html>\n<title>404 Not Found</title>\n", "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if self.path not in (CHAT, INFERENCE):
            self._send(404, b"<!doctype html>\n<title>404 Not Found</title>\n", "text/html; charset=utf-8")
            self._drain()
            return
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()})
        self.double.requests.append(request)
        self.double.used()
        scripted = self.double.scripted(self.path)
        if scripted is not None and scripted.reset == "early":
            self._reset()
            return
        if scripted is None and self.double.state != "ready":
            request.status = self._not_ready()
            self._drain()
            return
        problem = self._read(request)
        if scripted is not None:
            request.status = scripted.status
            self._give(scripted, request)
        elif problem is not None:
            request.status = problem[0]
            self._json(*problem)
        else:
            request.status = 200
            self._give(Answer(text=f"You asked: {request.prompt}"), request)

    # What it says of itself

    def _readiness(self) -> tuple[int, dict[str, Any]]:
        reason, kind, status, message, _, _ = STATES[self.double.state]
        message, now = message.format(why=self.double.why), {"timestamp": datetime.now().isoformat()}
        if not reason:
            return 200, self.double.named({"status": "ready", "message": message, "model_type": "TaoServer", **now})
        if self.double.shape == "error":
            return status, self.double.named({"error": {"type": kind, "message": message}})
        return 503, self.double.named({"status": "not_ready", "reason": reason, "message": message, **now})

    def _progress(self) -> dict[str, Any]:
        *_, stage, message = STATES[self.double.state]
        remaining = {
            "initializing": ["Load model into memory", "Ready for inference"],
            "loading_model": ["Complete model loading", "Ready for inference"],
        }
        return {
            "stage": stage,
            "message": message.format(why=self.double.why),
            "remaining_steps": remaining.get(stage, []),
            "details": {"phase": self.double.state},
            "timestamp": datetime.now().isoformat(),
        }

    def _liveness(self) -> dict[str, Any]:
        state = self.double.state
        return self.double.named(
            {
                "status": "healthy",
                "model_loaded": state == "ready",
                "model_loading": state == "loading",
                "server_initializing": state == "initializing",
                "model_type": "TaoServer",
                "last_request_time": datetime.fromtimestamp(self.double.last_request).isoformat(),
                "idle_time_minutes": round(self.double.idle_minutes, 2),
                "idle_timeout_minutes": 30,
                "auto_deletion_enabled": True,
                "progress": self._progress(),
            }
        )

    def _status(self) -> dict[str, Any]:
        state = self.double.state
        return self._liveness() | {
            "model_state": {"loaded": state == "ready", "loading": state == "loading"},
            "initialization_error": self.double.why if state == "initialization_failed" else None,
            "model_load_error": self.double.why if state == "failed" else None,
        }

    def _not_ready(self) -> int:
        _, kind, status, message, _, _ = STATES[self.double.state]
        self._json(status, {"error": {"type": kind, "message": message.format(why=self.double.why)}})
        return status

    # What it reads

    def _read(self, request: Request) -> tuple[int, dict[str, Any]] | None:
        """Fill in the request; what is wrong with it as the real server says it, or None."""
        chunked = "chunked" in request.headers.get("transfer-encoding", "")
        length = None if chunked else int(request.headers.get("content-length") or 0)
        body = request_bodies.read(request_bodies.blocks(self.rfile, length))  # type: ignore[arg-type]
        request.size, request.sha256, request.data_uris = body.size, body.sha256, body.data_uris
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise RuntimeError("415 Unsupported Media Type: the request Content-Type was not 'application/json'.")
            request.body = _json_body(body.text)
            if not request.body:
                raise ValueError("Request body is required")
            if request.path == CHAT:
                self._understand(request)
        except ValueError as error:
            status = self.double.cloud_uri_status if str(error).startswith("Cloud-storage") else 400
            kind = "invalid_request" if status == 400 else "internal_error"
            return status, {"error": {"message": str(error), "type": kind}}
        except Exception as error:
            return 500, {"error": {"message": str(error), "type": "internal_error"}}
        return None

    def _understand(self, request: Request) -> None:
        messages = request.body.get("messages", [])
        request.system_prompt = next((m.get("content", "") for m in messages if m.get("role") == "system"), "")
        first: dict[str, Any] = next((message for message in messages if message.get("role") == "user"), {})
        content = first.get("content", [])
        if isinstance(content, str):
            request.prompt = content
        else:
            for item in content:
                if item.get("type") in ("image_url", "video_url"):
                    request.media.append(item[item["type"]]["url"])
                elif item.get("type") == "text":
                    request.prompt = item.get("text", "")
        request.sampling = {"max_new_tokens": 1024, "temperature": 0.7}
        request.sampling |= {FORWARDED[key]: value for key, value in request.body.items() if key in FORWARDED}
        for uri in request.data_uris:
            if uri.mime not in MIME_TYPES:
                raise ValueError(f"Unsupported media type: {uri.mime}")
            if uri.encoded_size * 3 // 4 > MOST_MEDIA_BYTES:
                raise ValueError(f"Media payload exceeds {MOST_MEDIA_BYTES} byte limit")
            if uri.error:
                raise ValueError(uri.error)
        if self.double.model == "text":
            return
        for url in request.media:
            if url.startswith(CLOUD):
                raise ValueError(f"Cloud-storage URIs are not supported by the inference service: {url}.")
            if not url.startswith(("http://", "https://", "data:")):
                raise RuntimeError(f"[Errno 2] No such file or directory: '{url}'")
        if self.double.model == "media_required" and not request.media:
            raise ValueError("an image or a video is required")

    # What it sends

    def _give(self, answer: Answer, request: Request) -> None:
        time.sleep(answer.delay)
        if answer.reset:
            self._reset()
        elif answer.body is not None:
            body = json.dumps(answer.body) if isinstance(answer.body, Mapping) else answer.body
            encoded = body.encode() if isinstance(body, str) else body
            self._send(answer.status, encoded, answer.content_type, answer.truncate, answer.headers)
        elif request.path == INFERENCE:
            results = {
                "status": "completed",
                "results": {"response": answer.text},
                "message": "TaoServer inference completed",
            }
            self._json(answer.status, self.double.named(results))
        elif self.double.streaming and isinstance(request.body, dict) and request.body.get("stream"):
            self._stream(answer, request)
        else:
            self._complete(answer, request)

    def _completion(self, answer: Answer, request: Request, content: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": content}
        completion: dict[str, Any] = {
            "id": "chatcmpl-" + datetime.now().strftime("%Y%m%d%H%M%S%f"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.double.model_path,
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        }
        usage = answer.usage or (_usage(request.prompt, content) if self.double.usage else None)
        return completion | ({"usage": usage} if usage else {})

    def _complete(self, answer: Answer, request: Request) -> None:
        if answer.video_bytes is None:
            completion = self._completion(answer, request, answer.text or "")
            body = json.dumps(completion).encode()
            self._send(answer.status, body, answer.content_type, answer.truncate, answer.headers)
            return
        hole = "@video@"
        before, after = json.dumps(self._completion(answer, request, hole)).split(hole)
        before += "data:video/mp4;base64,"
        # 3 bytes are 4 characters; a whole number of such groups needs no padding.
        groups = answer.video_bytes // 3
        total = len(before) + 4 * groups + len(after)
        self._head(answer.status, answer.content_type, total, answer.headers)
        sent = 0
        for part in (before.encode(), *_repeated(b"AAAA", groups), after.encode()):
            if answer.truncate is not None and sent + len(part) > answer.truncate:
                self.wfile.write(part[: answer.truncate - sent])
                return
            self.wfile.write(part)
            sent += len(part)

    def _stream(self, answer: Answer, request: Request) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number, event in enumerate(self._events(answer, request)):
            if number == answer.break_after:
                return
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            time.sleep(self.double.token_delay)
        self.wfile.write(b"0\r\n\r\n")

    def _events(self, answer: Answer, request: Request) -> Iterator[str]:
        text = answer.text or ""
        whole = self._completion(answer, request, text)
        frame = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

        def event(delta: dict[str, str], finish_reason: str | None) -> str:
            return json.dumps(frame | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

        yield event({"role": "assistant", "content": ""}, None)
        for number, word in enumerate(text.split(" ")):
            yield event({"content": word if number == 0 else f" {word}"}, None)
        yield event({}, answer.finish_reason)
        if (request.body.get("stream_options") or {}).get("include_usage"):
            yield json.dumps(frame | {"choices": [], "usage": answer.usage or _usage(request.prompt, text)})
        yield "[DONE]"

    def _json(self, status: int, body: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(body).encode() + b"\n", "application/json")

    def _send(
        self,
        status: int,
        body: bytes,
        content_type: str,
        truncate: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._head(status, content_type, len(body), headers or {})
        self.wfile.write(body[:truncate])

    def _head(self, status: int, content_type: str, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def _drain(self) -> None:
        # Closing with unread bytes would reset the connection and lose the answer: the real web server reads them away.
        while select.select([self.connection], [], [], 0.05)[0] and self.connection.recv(request_bodies.CHUNK):
            pass

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _json_body(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        # The web framework's own exception, which the real server answers with 500 (measured).
        raise RuntimeError(
            "400 Bad Request: The browser (or proxy) sent a request that this server could not understand."
        ) from None


def _usage(prompt: str, answer: str) -> dict[str, int]:
    asked, answered = len(prompt.split()), len(answer.split())
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _repeated(group: bytes, times: int) -> Iterator[bytes]:
    block = group * (request_bodies.CHUNK // len(group))
    per_block = len(block) // len(group)
    for _ in range(times // per_block):
        yield block
    yield group * (times % per_block)

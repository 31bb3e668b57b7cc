"""A TAO inference microservice as the network sees it, without a model.

Follows NVIDIA's published `nvidia-tao-core` 7.3.0 (`base_inference_microservice_server`, the base of every TAO server) as it
was measured: paths, statuses, bodies and their oddities (the last text item wins, bad JSON is a 500, no `usage`). The body
shape with `error.type` and 202, and the cloud URI answered with 500, are those of older images and of the seed document.
Like the real one's web server it closes each connection, and while it is not ready answers without reading the body.

In a test:      with TaoServer(job_id="…", load_seconds=2) as server: … server.url … server.requests
As a process:   python tests/doubles/tao_server.py --port 8080 --job '{"job_id": "…"}' --docker_env_vars '{}' --load-seconds 2
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a program, too
from doubles import request_bodies  # noqa: E402

CHAT = "/v1/chat/completions"
LIVENESS = "/api/v1/health/liveness"
READINESS = "/api/v1/health/readiness"
STATUS = "/api/v1/status"
INFERENCE = "/api/v1/inference"

# State -> words: (readiness `reason`, `error.type`, status in the error shape, message, liveness stage and its message)
_STATES: dict[str, tuple[str, str, int, str, str, str]] = {
    "initializing": (
        "server_initializing", "server_initializing", 202, "Server is still initializing",
        "initializing", "Starting server initialization",
    ),
    "loading": (
        "model_loading", "model_loading", 202, "Model is currently loading",
        "loading_model", "Loading model into memory",
    ),
    "not_loaded": (
        "model_not_loaded", "model_not_ready", 503, "Model not loaded yet", "loading_model", "Loading model into memory",
    ),
    "initialization_failed": (
        "initialization_failed", "initialization_error", 503, "Server initialization failed: {why}",
        "error", "Initialization failed: {why}",
    ),
    "failed": (
        "model_load_failed", "model_load_error", 503, "Model failed to load: {why}", "error", "Model loading failed: {why}",
    ),
    "ready": ("", "", 200, "Server is ready to accept inference requests", "ready", "Model loaded successfully"),
}  # fmt: skip
_MIME_TYPES = frozenset(
    "video/mp4 video/avi video/webm video/mkv video/x-matroska video/mov "
    "image/jpeg image/png image/webp image/gif image/bmp image/tiff".split()
)
_MOST_MEDIA_BYTES = 512 * 1024 * 1024
_FORWARDED = {"max_tokens": "max_new_tokens"} | {
    name: name
    for name in "temperature top_p top_k min_p repetition_penalty frequency_penalty presence_penalty seed stop n best_of "
    "length_penalty ignore_eos min_tokens".split()
}
_CLOUD = ("s3://", "gs://", "az://", "cs://", "aws://")


@dataclass(frozen=True)
class Answer:
    """One scripted answer, in place of the one that the server would give.

    `text` is a completion's content, `video_bytes` makes it a base64 video of that many bytes (streamed); `body` is sent
    as it is (a mapping as JSON). `truncate`: only that many of the promised bytes are sent. `reset`: the connection is
    reset instead, `early` before the body is read or `late` after it. `delay` (seconds) comes before the answer,
    `break_after`: so many events of a streamed answer, then the connection closes.
    """

    status: int = 200
    text: str | None = None
    video_bytes: int | None = None
    body: Mapping[str, Any] | str | bytes | None = None
    content_type: str = "application/json"
    finish_reason: str = "stop"
    usage: Mapping[str, int] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    truncate: int | None = None
    reset: str = ""
    break_after: int | None = None


@dataclass
class Request:
    """One POST as the server understood it. In `body` a data: URI is `data:<mime>;base64,#<index>` into `data_uris`."""

    path: str
    headers: dict[str, str]
    body: Any = None
    size: int = 0
    sha256: str = ""
    data_uris: tuple[request_bodies.DataUri, ...] = ()
    media: list[str] = field(default_factory=list)
    prompt: str = ""
    system_prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    status: int = 0


class TaoServer:
    """The server. States are `initializing`, `loading`, `not_loaded`, `ready`, `failed`, `initialization_failed`.

    It goes from the first to the last of them by the clock (`initialize_seconds`, then `load_seconds`; `fail` is the state
    it ends in instead of `ready`), or as `become` says. `shape`: `reason` (7.3.0) or `error` (older). `job_id` None leaves
    it out of every body. `model`: `media`, `text` (ignores cloud URIs) or `media_required`.
    """

    def __init__(
        self,
        job_id: str | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        initialize_seconds: float = 0.0,
        load_seconds: float = 0.0,
        fail: str | None = None,
        why: str = "Repo id must be in the form 'repo_name' or 'namespace/repo_name'",
        shape: str = "reason",
        model: str = "media",
        model_path: str = "org/model",
        usage: bool = False,
        streaming: bool = False,
        token_delay: float = 0.0,
        cloud_uri_status: int = 400,
    ) -> None:
        self.job_id, self.model, self.model_path, self.shape, self.why = job_id, model, model_path, shape, why
        self.usage, self.streaming, self.token_delay = usage, streaming, token_delay
        self.cloud_uri_status = cloud_uri_status
        self.initialize_seconds, self.load_seconds = initialize_seconds, load_seconds
        self.end_state = fail or "ready"
        self.requests: list[Request] = []
        self.polls: list[tuple[float, str]] = []  # (time.monotonic(), path) of every GET
        self._forced: str | None = None
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._server = _HTTPServer((host, port), _Handler)
        self._server.double = self
        self.port = int(self._server.server_address[1])
        self.url = f"http://{host}:{self.port}"
        self.started = time.monotonic()

    @property
    def ready_at(self) -> float:
        """When its clock makes it ready, on time.monotonic()'s scale."""
        return self.started + self.initialize_seconds + self.load_seconds

    @property
    def state(self) -> str:
        """What it is doing now."""
        if self._forced:
            return self._forced
        running = time.monotonic() - self.started
        if running < self.initialize_seconds:
            return "initializing"
        return "loading" if running < self.initialize_seconds + self.load_seconds else self.end_state

    def become(self, state: str) -> None:
        """Be in that state from now on."""
        _ = _STATES[state]
        self._forced = state

    def script(self, path: str, *answers: Answer) -> None:
        """Answer the next requests of that path so, one each."""
        self._scripts[path].extend(answers)

    def always(self, path: str, answer: Answer | None) -> None:
        """Answer every request of that path so, until told otherwise (None)."""
        if answer is None:
            self._always.pop(path, None)
        else:
            self._always[path] = answer

    def scripted(self, path: str) -> Answer | None:
        """The scripted answer whose turn it is."""
        try:
            return self._scripts[path].popleft()
        except IndexError:
            return self._always.get(path)

    def serve(self) -> None:
        """Serve in this thread until `close`."""
        self._server.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        """Stop listening; a connection in progress is not waited for."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> TaoServer:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def named(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with our job_id in it, where we have one."""
        return body if self.job_id is None else {**body, "job_id": self.job_id}


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    double: TaoServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HTTPServer

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
        reason, kind, status, message, _, _ = _STATES[self.double.state]
        message, now = message.format(why=self.double.why), {"timestamp": datetime.now().isoformat()}
        if not reason:
            return 200, self.double.named({"status": "ready", "message": message, "model_type": "TaoServer", **now})
        if self.double.shape == "error":
            return status, self.double.named({"error": {"type": kind, "message": message}})
        return 503, self.double.named({"status": "not_ready", "reason": reason, "message": message, **now})

    def _progress(self) -> dict[str, Any]:
        *_, stage, message = _STATES[self.double.state]
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
                "last_request_time": datetime.now().isoformat(),
                "idle_time_minutes": 0.0,
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
        _, kind, status, message, _, _ = _STATES[self.double.state]
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
        first = next((message for message in messages if message.get("role") == "user"), {})
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
        request.sampling |= {_FORWARDED[key]: value for key, value in request.body.items() if key in _FORWARDED}
        for uri in request.data_uris:
            if uri.mime not in _MIME_TYPES:
                raise ValueError(f"Unsupported media type: {uri.mime}")
            if uri.encoded_size * 3 // 4 > _MOST_MEDIA_BYTES:
                raise ValueError(f"Media payload exceeds {_MOST_MEDIA_BYTES} byte limit")
            if uri.error:
                raise ValueError(uri.error)
        if self.double.model == "text":
            return
        for uri in request.media:
            if uri.startswith(_CLOUD):
                raise ValueError(f"Cloud-storage URIs are not supported by the inference service: {uri}.")
            if not uri.startswith(("http://", "https://", "data:")):
                raise RuntimeError(f"[Errno 2] No such file or directory: '{uri}'")
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


def _job(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return dict(ast.literal_eval(text))


def main() -> None:
    """Serve as the inner command of a service does. Host and port may come from TAO_INF_MS_HOST and TAO_INF_MS_PORT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default=os.environ.get("TAO_INF_MS_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("TAO_INF_MS_PORT", "8080")))
    parser.add_argument("--job", type=_job, default={})
    parser.add_argument("--docker_env_vars", type=_job, default={})
    parser.add_argument("--idle_timeout_minutes", type=int, default=30)
    parser.add_argument("--disable_auto_deletion", action="store_true")
    parser.add_argument("--initialize-seconds", type=float, default=0.0)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--fail", choices=["failed", "initialization_failed"])
    parser.add_argument("--shape", choices=["reason", "error"], default="reason")
    parser.add_argument("--streaming", action="store_true")
    parser.add_argument("--usage", action="store_true")
    parser.add_argument("--crash-after", type=float, help="seconds until the process dies with exit status 1")
    arguments = parser.parse_args()
    server = TaoServer(
        arguments.job.get("job_id"),
        host=arguments.host,
        port=arguments.port,
        initialize_seconds=arguments.initialize_seconds,
        load_seconds=arguments.load_seconds,
        fail=arguments.fail,
        shape=arguments.shape,
        model_path=arguments.job.get("specs", {}).get("model_path", "org/model"),
        streaming=arguments.streaming,
        usage=arguments.usage,
    )
    print(f"Starting TaoServer Server on port {server.port}", flush=True)
    print("Progress update: loading_model - Loading model into memory (Remaining: 2 steps)", flush=True)
    if arguments.fail:
        print(f"Failed to load model: {server.why}", flush=True)
    if arguments.crash_after is not None:
        threading.Timer(arguments.crash_after, _crash).start()
    server.serve()


def _crash() -> None:
    print("RuntimeError: CUDA error: out of memory", flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()

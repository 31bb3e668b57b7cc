"""A TAO inference microservice as the network sees it, without a model.

Follows NVIDIA's published `nvidia-tao-core` 7.3.0 (`base_inference_microservice_server`, the base of every TAO server)
as it was measured: paths, statuses, bodies and their oddities (the last text item wins, bad JSON is a 500, there is no
`usage`). The body shape with `error.type` and 202, and the cloud URI answered with 500, are those of older images.
Like the real one's web server it closes each connection, and while it is not ready it answers without reading the body.

In a test:      with TaoServer(job_id="…", load_seconds=2) as server: … server.url … server.requests
As a process:   python tests/doubles/tao_server.py --port 8080 --job '{"job_id": "…"}' --load-seconds 2
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import threading
import time
from collections import defaultdict, deque
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a program, too
from doubles.tao_handler import HTTPServer
from doubles.tao_wire import CHAT, INFERENCE, LIVENESS, READINESS, STATES, STATUS, Answer, Request

__all__ = ["CHAT", "INFERENCE", "LIVENESS", "READINESS", "STATUS", "Answer", "Request", "TaoServer"]


class TaoServer:
    """The server. States are `initializing`, `loading`, `not_loaded`, `ready`, `failed`, `initialization_failed`.

    It goes from the first to the last of them by the clock (`initialize_seconds`, then `load_seconds`; `fail` is the
    state it ends in instead of `ready`), or as `become` says. `shape`: `reason` (7.3.0) or `error` (older). `job_id`
    None leaves it out of every body. `model`: `media`, `text` (ignores cloud URIs) or `media_required`. `idle_minutes`
    is for how long it has been idle when it starts.
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
        idle_minutes: float = 0.0,
    ) -> None:
        self.job_id, self.model, self.model_path, self.shape, self.why = job_id, model, model_path, shape, why
        self.usage, self.streaming, self.token_delay = usage, streaming, token_delay
        self.cloud_uri_status = cloud_uri_status
        self.last_request, self._idle_before = time.time(), idle_minutes
        self.initialize_seconds, self.load_seconds = initialize_seconds, load_seconds
        self.end_state = fail or "ready"
        self.requests: list[Request] = []
        self.polls: list[tuple[float, str]] = []  # (time.monotonic(), path) of every GET
        self._forced: str | None = None
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._server = HTTPServer((host, port))
        self._server.double = self
        self.port = int(self._server.server_address[1])
        self.url = f"http://{host}:{self.port}"
        self.started = time.monotonic()

    @property
    def ready_at(self) -> float:
        """When its clock makes it ready, on time.monotonic()'s scale."""
        return self.started + self.initialize_seconds + self.load_seconds

    @property
    def idle_minutes(self) -> float:
        """Since the last request arrived, or it was ready: a request in progress does not stop this clock (7.3.0)."""
        if self.state != "ready":
            return 0.0
        seconds = min(time.time() - self.last_request, time.monotonic() - self.ready_at)
        return self._idle_before + max(0.0, seconds) / 60

    def used(self) -> None:
        """Note that a request has arrived."""
        self.last_request, self._idle_before = time.time(), 0.0

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
        _ = STATES[state]
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
    parser.add_argument("--bind-late", type=float, default=0.0, help="seconds until it listens: heavy imports")
    parser.add_argument("--idle-minutes", type=float, default=0.0, help="for how long it has been idle already")
    parser.add_argument("--crash-after", type=float, help="seconds until the process dies with exit status 1")
    arguments = parser.parse_args()
    time.sleep(arguments.bind_late)
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
        idle_minutes=arguments.idle_minutes,
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

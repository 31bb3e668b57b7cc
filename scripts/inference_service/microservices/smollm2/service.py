"""What the service knows of itself while it serves: how far its model is, and when it was last used.

The states and their words are those of the TAO microservices (measured on nvidia-tao-core 7.3.0), so that one poller
reads both.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from inference_service.contracts import Progress
from inference_service.errors import ToolError
from inference_service.microservices.smollm2.model import NETWORK_ARCH, Model, library, locate

_LOADS_WITH = "xllamacpp"
_STEPS = ("fetch weights", "load model", "serve")


class Service:
    """One service. Its methods may be called from any thread; `load` is called once."""

    def __init__(self, job_id: str, model_path: str, idle_timeout_minutes: float, auto_deletion: bool) -> None:
        self.job_id = job_id
        self.model_path = model_path
        self.model: Model | None = None
        self._idle_timeout_minutes = idle_timeout_minutes
        self._auto_deletion = auto_deletion
        self._lock = threading.Lock()
        self._state = "server_initializing"
        self._message = "the server is initializing"
        self._last_request = self._idle_since = time.time()
        self._in_use = 0
        self._progress = self._snapshot(Progress("initializing", self._message), 0)

    def load(self) -> None:
        """Load the model. Never raises: a service that failed stays up and says so, as the TAO microservices do."""
        try:
            self._enter("server_initializing", Progress("initializing", "looking for llama.cpp"), 0)
            try:
                library()
            except ImportError as error:
                self._fail("initialization_failed", f"cannot import {_LOADS_WITH}: {error} ({_import_fix(error)})")
                return
            self._enter("model_loading", Progress("locating_model", self.model_path), 0)
            name, file = locate(self.model_path, lambda progress: self._enter("model_loading", progress, 0))
            self._enter("model_loading", Progress("loading_model", f"loading {file}"), 1)
            began = time.monotonic()
            self.model = Model(name, file)
            seconds = time.monotonic() - began
            self._enter("ready", Progress("ready", f"{name} loaded in {seconds:.2f} s", 1.0), len(_STEPS))
        except ToolError as error:
            self._fail("model_load_failed", f"cannot load {self.model_path!r}: {error.message} ({error.fix})")
        except Exception as error:
            self._fail("model_load_failed", f"cannot load {self.model_path!r}: {type(error).__name__}: {error}")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Around a request, from when it comes in until its answer has ended: it is not idle meanwhile.

        The TAO microservices note the beginning alone (nvidia-tao-core 7.3.0): a long answer looks like idleness there.
        """
        with self._lock:
            self._last_request = time.time()
            self._in_use += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use -= 1
                self._idle_since = time.time()

    def not_ready(self) -> tuple[str, str] | None:
        """Why it cannot answer, yet or ever: one of the words of readiness' `reason`, and a sentence. None: it can."""
        with self._lock:
            return None if self._state == "ready" else (self._state, self._message)

    def liveness(self) -> dict[str, Any]:
        """The body of liveness."""
        with self._lock:
            idle = self._state == "ready" and not self._in_use
            idle_minutes = (time.time() - self._idle_since) / 60 if idle else 0.0
            return {
                "status": "healthy",
                "model_loaded": self._state == "ready",
                "model_loading": self._state == "model_loading",
                "server_initializing": self._state == "server_initializing",
                "job_id": self.job_id,
                "model_type": NETWORK_ARCH,
                "last_request_time": _moment(self._last_request),
                "idle_time_minutes": round(idle_minutes, 2),
                "idle_timeout_minutes": self._idle_timeout_minutes,
                "auto_deletion_enabled": self._auto_deletion,
                "progress": self._progress,
            }

    def status(self) -> dict[str, Any]:
        """The body of /api/v1/status."""
        with self._lock:
            return {
                "status": "ready" if self._state == "ready" else "not_ready",
                "job_id": self.job_id,
                "model_state": {
                    "loaded": self._state == "ready",
                    "loading": self._state == "model_loading",
                    "name": self.model.name if self.model else None,
                    "path": self.model_path,
                },
                "initialization_error": self._message if self._state == "initialization_failed" else None,
                "model_load_error": self._message if self._state == "model_load_failed" else None,
                "progress": self._progress,
            }

    def _enter(self, state: str, progress: Progress, steps_done: int) -> None:
        with self._lock:
            self._state, self._message = state, progress.message
            self._idle_since = time.time()
            self._progress = self._snapshot(progress, steps_done)
        if progress.fraction in (None, 1.0):
            log(f"{progress.stage}: {progress.message}")

    def _fail(self, state: str, message: str) -> None:
        self._enter(state, Progress("error", message), len(_STEPS))

    def _snapshot(self, progress: Progress, steps_done: int) -> dict[str, Any]:
        details = dict(progress.details)
        if progress.fraction is not None:
            details["fraction"] = round(progress.fraction, 3)
        return {
            "stage": progress.stage,
            "message": progress.message,
            "remaining_steps": list(_STEPS[steps_done:]),
            "details": details,
            "timestamp": _moment(time.time()),
        }


def _import_fix(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{sys.executable} -m pip install {_LOADS_WITH}"
    if "libgomp" in str(error):
        return "apt-get install libgomp1, or your system's package of GCC's OpenMP library"
    return f"{sys.executable} -m pip install --force-reinstall {_LOADS_WITH}"


def log(message: str) -> None:
    """One line of the service's log."""
    print(f"{_moment(time.time())} {message}", file=sys.stderr, flush=True)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")

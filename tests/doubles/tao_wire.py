"""What the double of a TAO microservice says and takes: paths, words per state, MIME types, scripted answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from doubles import request_bodies

CHAT = "/v1/chat/completions"
LIVENESS = "/api/v1/health/liveness"
READINESS = "/api/v1/health/readiness"
STATUS = "/api/v1/status"
INFERENCE = "/api/v1/inference"

# State -> words: (readiness `reason`, `error.type`, status in the error shape, message, liveness stage and its message)
STATES: dict[str, tuple[str, str, int, str, str, str]] = {
    "initializing": (
        "server_initializing", "server_initializing", 202, "Server is still initializing",
        "initializing", "Starting server initialization",
    ),
    "loading": (
        "model_loading", "model_loading", 202, "Model is currently loading",
        "loading_model", "Loading model into memory",
    ),
    "not_loaded": (
        "model_not_loaded", "model_not_ready", 503, "Model not loaded yet",
        "loading_model", "Loading model into memory",
    ),
    "initialization_failed": (
        "initialization_failed", "initialization_error", 503, "Server initialization failed: {why}",
        "error", "Initialization failed: {why}",
    ),
    "failed": (
        "model_load_failed", "model_load_error", 503, "Model failed to load: {why}",
        "error", "Model loading failed: {why}",
    ),
    "ready": ("", "", 200, "Server is ready to accept inference requests", "ready", "Model loaded successfully"),
}  # fmt: skip
MIME_TYPES = frozenset(
    [f"video/{kind}" for kind in ("mp4", "avi", "webm", "mkv", "x-matroska", "mov")]
    + [f"image/{kind}" for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff")]
)
MOST_MEDIA_BYTES = 512 * 1024 * 1024
# A sampling field's name in the request, and the keyword argument the model gets.
FORWARDED = {
    "max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty", "seed": "seed", "stop": "stop", "n": "n", "best_of": "best_of",
    "length_penalty": "length_penalty", "ignore_eos": "ignore_eos", "min_tokens": "min_tokens",
}  # fmt: skip
CLOUD = ("s3://", "gs://", "az://", "cs://", "aws://")


@dataclass(frozen=True)
class Answer:
    """One scripted answer, in place of the one that the server would give.

    `text` is a completion's content, `video_bytes` makes it a base64 video of that many bytes (streamed); `body` is
    sent as it is (a mapping as JSON). `truncate`: only that many of the promised bytes are sent. `reset`: the
    connection is reset instead, `early` before the body is read or `late` after it. `delay` (seconds) comes before
    the answer. `break_after`: so many events of a streamed answer, then the connection closes.
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

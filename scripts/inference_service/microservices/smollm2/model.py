"""The model: which file a model_path means, and answers from it through llama.cpp in this process."""

from __future__ import annotations

import json
import os
import queue
import secrets
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from inference_service import references
from inference_service.contracts import Report
from inference_service.errors import ToolError
from inference_service.microservices import weights

NETWORK_ARCH = "smollm2"
_HUB = "hf_model://"

# Two requests are answered at once, each with half of the context; more wait their turn inside llama.cpp.
_PARALLEL = 2
_CONTEXT_TOKENS = 8192
_WARNINGS_AND_ERRORS = 2

# What a caller gets of an answer or of a piece of one. The library adds timings and build names.
_ANSWER_FIELDS = ("id", "object", "created", "choices", "usage")


def bundled() -> str:
    """The model_path of the model whose weights this skill knows how to fetch."""
    return _HUB + references.load().weights[NETWORK_ARCH].model


class RequestError(ValueError):
    """The request is not what this model takes; the text says why."""


def locate(model_path: str, report: Report) -> tuple[str, Path]:
    """The model's name and its GGUF file: the weights that come with this skill, a file, or the only one of a folder.

    Raises:
        ToolError: it is none of these, or the weights cannot be fetched.
    """
    if model_path == bundled():
        pinned = references.load().weights[NETWORK_ARCH]
        return pinned.model, weights.fetch(pinned, report)
    if not model_path.startswith("/"):
        raise ToolError(
            "unknown_model",
            f"{model_path!r} is not served here",
            f"use {bundled()}, or the absolute path of a GGUF file",
        )
    try:
        file = _only_gguf(Path(model_path))
    except OSError as error:
        fix = f"let the service's user (uid {os.geteuid()}) read it"
        raise ToolError("unknown_model", f"{model_path} cannot be read: {error.strerror}", fix) from error
    return file.stem, file


def _only_gguf(path: Path) -> Path:
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ToolError(
                "unknown_model",
                f"the folder {path} must hold exactly one .gguf file; it holds {names}",
                "name the file",
            )
        path = files[0]
    if not path.exists():
        raise ToolError(
            "unknown_model", f"there is no file {path} where the service runs", "mount it, or correct the path"
        )
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ToolError("unknown_model", f"{path} is not a GGUF file", "give the path of a GGUF file")
    return path


def library() -> Any:
    """llama.cpp's Python package.

    Raises:
        ImportError: it is not installed, or a library that it needs is not.
    """
    # Threads that wait must sleep. By default they spin, which on a machine with other work to do makes a short answer
    # take 3 s instead of 0.2 s (measured: 2 cores, load 10), and gains nothing on an idle one. Read at the import only.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    return xllamacpp


class Model:
    """A loaded model. `answer` and `stream` may be called from any number of threads."""

    def __init__(self, name: str, file: Path) -> None:
        """Load it. Takes as long as the file is big, and keeps Python's global lock meanwhile.

        Raises:
            ToolError: llama.cpp cannot load the file; its log on standard error says why.
        """
        xllamacpp = library()
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = _CONTEXT_TOKENS
        params.n_parallel = _PARALLEL
        params.warmup = False
        # Through the file's own jinja template this model answers nonsense, through the built-in ChatML it does not.
        params.use_jinja = False
        params.verbosity = _WARNINGS_AND_ERRORS
        # The library opens an HTTP port of its own on the loopback. Nobody is to use it.
        params.api_keys = [secrets.token_hex(32)]
        self.name = name
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ToolError(
                "model_unloadable", f"llama.cpp cannot load {file}: {error}", "use a file that it can load"
            ) from error

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to a request that `chat.translate` made.

        Raises:
            RequestError: llama.cpp does not take the request.
        """
        answers: list[str] = []
        self._server.handle_chat_completions(json.dumps(request), answers.append)
        return self._cleaned(answers[0])

    def stream(self, request: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The answer in pieces, the last one with the usage. Closing the iterator stops the work.

        Raises:
            RequestError: llama.cpp does not take the request; raised by the first `next`.
        """
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        closed = threading.Event()

        def receive(piece: str) -> bool:
            pieces.put(piece)
            return closed.is_set()  # True makes llama.cpp give the request up.

        def work() -> None:
            try:
                body = {**request, "stream": True, "stream_options": {"include_usage": True}}
                self._server.handle_chat_completions(json.dumps(body), receive)
                pieces.put(None)
            except BaseException as error:  # handed to the thread that waits for it
                pieces.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield self._cleaned(piece)
        finally:
            closed.set()

    def _cleaned(self, text: str) -> dict[str, Any]:
        document = json.loads(text)
        if "error" in document:
            error = document["error"]
            if error.get("code") == 400:
                raise RequestError(error["message"])
            raise RuntimeError(error["message"])
        return {"model": self.name, **{name: document[name] for name in _ANSWER_FIELDS if name in document}}

"""The HTTP side of the service: the TAO microservices' endpoints, bodies and error shapes, and streaming besides."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from inference_service.microservices.smollm2 import chat
from inference_service.microservices.smollm2.model import Model, RequestError
from inference_service.microservices.smollm2.service import Service, log

if TYPE_CHECKING:
    from flask import Flask, Response

_LONGEST_BODY_BYTES = 4 << 20
# Readiness says it in one word, a chat completion in another; the status is the chat completion's.
_CHAT_ERRORS = {
    "server_initializing": (202, "server_initializing"),
    "model_loading": (202, "model_loading"),
    "initialization_failed": (503, "initialization_error"),
    "model_load_failed": (503, "model_load_error"),
}


def application(service: Service) -> Flask:
    """The WSGI application of that service."""
    from flask import Flask, Response, jsonify, request
    from werkzeug.exceptions import HTTPException

    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = _LONGEST_BODY_BYTES

    def problem(status: int, type: str, message: str) -> Response:
        response = jsonify({"error": {"type": type, "message": message}})
        response.status_code = status
        return response

    @app.get("/api/v1/health/liveness")
    def liveness() -> Response:
        return jsonify(service.liveness())

    @app.get("/api/v1/health/readiness")
    def readiness() -> Response:
        why = service.not_ready()
        if why is None:
            return jsonify({"status": "ready", "job_id": service.job_id, "message": "the model is loaded"})
        response = jsonify({"status": "not_ready", "reason": why[0], "message": why[1], "job_id": service.job_id})
        response.status_code = 503
        return response

    @app.get("/api/v1/status")
    def status() -> Response:
        return jsonify(service.status())

    @app.post("/v1/chat/completions")
    def chat_completions() -> Response:
        why = service.not_ready()
        if why is not None or service.model is None:
            state, message = why or ("model_loading", "the model is loading")
            http_status, error_type = _CHAT_ERRORS[state]
            return problem(http_status, error_type, message)
        with contextlib.ExitStack() as until_answered:
            until_answered.enter_context(service.in_use())
            # Not get_json: that has answers of its own for what is not JSON, and the TAO servers' answer is 500.
            body = json.loads(request.get_data())
            translated = chat.translate(body)
            if body.get("stream"):
                stream = Response(_events(service.model, translated), mimetype="text/event-stream")
                # Called however the stream ends, which the generator's own end is not: it may never have begun.
                stream.call_on_close(until_answered.pop_all().close)
                return stream
            began = time.monotonic()
            answer = service.model.answer(translated)
            _log_usage(began, answer.get("usage"))
            return jsonify(answer)

    @app.errorhandler(RequestError)
    def refused(error: RequestError) -> Response:
        return problem(400, "invalid_request", str(error))

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        type = {404: "not_found", 405: "method_not_allowed"}.get(error.code or 500, "invalid_request")
        return problem(error.code or 500, type, f"{request.method} {request.path}: {error.description}")

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        log(f"{request.method} {request.path} failed: {type(error).__name__}: {error}")
        return problem(500, "internal_error", str(error) or type(error).__name__)

    return app


def _events(model: Model, translated: dict[str, Any]) -> Generator[str, None, None]:
    """The answer as server-sent events. What llama.cpp refuses is raised now, while a status can still be sent."""
    began = time.monotonic()
    pieces = model.stream(translated)
    first = next(pieces)

    def events() -> Generator[str, None, None]:
        usage = None
        try:
            for piece in itertools.chain([first], pieces):
                usage = piece.get("usage", usage)
                yield f"data: {json.dumps(piece)}\n\n"
            yield "data: [DONE]\n\n"
        except RuntimeError as error:
            yield f"data: {json.dumps({'error': {'type': 'internal_error', 'message': str(error)}})}\n\n"
        finally:
            pieces.close()
            _log_usage(began, usage)

    return events()


def _log_usage(began: float, usage: Any) -> None:
    told = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens" if usage else "given up by the client"
    log(f"chat completion: {told} in {time.monotonic() - began:.2f} s")

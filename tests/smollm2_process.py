"""The smollm2 microservice as a process of a test, asked over HTTP."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from support import SCRIPTS, eventually, need_engine

from inference_service import references

MODEL = "hf_model://HuggingFaceTB/SmolLM2-135M-Instruct"
LIVENESS, READINESS = "/api/v1/health/liveness", "/api/v1/health/readiness"
STATUS, CHAT = "/api/v1/status", "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Service:
    """A running microservice, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.url, self._log = process, f"http://127.0.0.1:{port}", log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=30)

    def ask(self, messages: Any = QUESTION, **fields: Any) -> requests.Response:
        return requests.post(self.url + CHAT, json={"messages": messages, "temperature": 0, **fields}, timeout=60)

    def readiness(self) -> dict[str, Any] | None:
        """The body of readiness and its HTTP status as `http_status`; None while nothing listens yet."""
        try:
            answer = self.get(READINESS)
        except requests.ConnectionError:
            assert self.process.poll() is None, self.log
            return None
        return {**answer.json(), "http_status": answer.status_code}

    def ready(self) -> Service:
        def loaded() -> bool:
            answer = self.readiness() or {}
            assert answer.get("reason") not in references.load().wire.readiness.failure, self.log
            return answer.get("http_status") == 200

        eventually(loaded, timeout=120)
        return self


Start = Callable[..., Service]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_in(folder: Path, services: list[Service], model_path: str = MODEL, *options: str, **env: str) -> Service:
    port, log = free_port(), folder / f"log-{len(services)}"
    job = json.dumps({"job_id": "job-1", "specs": {"model_path": model_path}, "neural_network_name": "smollm2"})
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "inference_service.microservices.smollm2", "--job", job, *options],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS), "TAO_INF_MS_PORT": str(port), **env},
            stdout=output,
            stderr=output,
        )
    services.append(Service(process, port, log))
    return services[-1]


def need_model() -> None:
    installed = importlib.util.find_spec("xllamacpp") is not None and importlib.util.find_spec("flask") is not None
    need_engine("smollm2", installed, "xllamacpp or flask is not installed: pip install '.[local]'")


def failed(service: Service) -> dict[str, Any] | None:
    answer = service.readiness()
    retry = references.load().wire.readiness.retry
    return answer if answer is not None and answer.get("reason") not in retry else None

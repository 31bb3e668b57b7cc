"""A double of a service, registered as local-process registers one: with a process that runs (this one) and a log."""

from __future__ import annotations

import os
from typing import Any

from inference_service import paths, processes
from inference_service.contracts import ServiceEntry
from inference_service.registry import Registry

LOG_LINES = ("loading", "Traceback (most recent call last):", "RuntimeError: CUDA error: out of memory")


def register(job_id: str, network_arch: str, url: str, dead: bool = False, **fields: Any) -> ServiceEntry:
    """Register it; `dead` with a process that has ended. Its log is LOG_LINES."""
    this = processes.started_at(os.getpid())
    entry = ServiceEntry(
        **{
            "job_id": job_id,
            "network_arch": network_arch,
            "platform": "local-process",
            "host_url": url,
            "model_path": "hf_model://org/model",
            "started_at": "2026-01-01T00:00:00+00:00",
            "extras": {"pid": os.getpid(), "pid_started": 1.0 if dead else this},
            **fields,
        }
    )
    Registry().write(entry)
    log = paths.state_directory() / "processes" / job_id / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"{line}\n" for line in LOG_LINES))
    return entry

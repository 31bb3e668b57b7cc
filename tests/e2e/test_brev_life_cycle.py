"""Services on Brev from start to stop, by the scripts' command lines: a double of Brev, and real containers in it."""

from __future__ import annotations

from typing import Any

import pytest
from brev_double import IMAGE, LAUNCH, BrevDouble, brev, need_smollm2_image
from support import run_script

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("docker")]
__all__ = ["brev"]

ASK = ("--prompt", "What is the capital of France? Answer in one word.", "--accept-defaults", "--set", "max_tokens=12")


@pytest.fixture(autouse=True)
def image() -> None:
    need_smollm2_image()


def start(*arguments: str, **settings: Any) -> dict[str, Any]:
    document: dict[str, Any] = run_script("start_service", *LAUNCH, *arguments, **settings).document
    return document


def registered(job_id: str) -> dict[str, Any]:
    services = run_script("registry", "list").document["services"]
    return next(service for service in services if service["job_id"] == job_id)


def test_a_service_is_started_asked_read_and_stopped_on_an_instance_that_the_user_has(brev: BrevDouble) -> None:
    address = brev.add("mine")["address"]
    started = start("--instance", "mine")
    job_id = started["job_id"]
    assert started["ready"] and started["host_url"] == f"http://{address}:{started['host_port']}"
    assert brev.containers("mine") == [job_id]
    answer = run_script("send_request", "--job-id", job_id, *ASK).document
    assert "Paris" in answer["content"]
    log = run_script("service_logs", "--job-id", job_id).document["lines"]
    assert log and "mine" not in log and not any(line.startswith("end-of-") for line in log)
    stopped = run_script("stop_service", "--job-id", job_id).document
    assert stopped["stopped"] == [job_id]
    assert brev.containers() == [] and "mine" in brev.instances() and brev.homes() == []
    assert run_script("registry", "list").document["services"] == []

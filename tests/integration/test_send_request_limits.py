"""What a request costs in memory and time, what it does at a terminal, and request_parameters.py beside it."""

from __future__ import annotations

import dataclasses
import functools
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.tao_server import CHAT, Answer, TaoServer
from services import register
from support import SCRIPTS, eventually, run_script

from inference_service import platforms, references
from inference_service.body import InlinedFile, JsonBody
from inference_service.errors import ToolError
from inference_service.sending import Exchange

JOB = "11111111-2222-4333-8444-555555555555"
ASK = ("--prompt", "What is this?", "--accept-defaults")
MP4_HEADER = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2"


@pytest.fixture
def server() -> Iterator[TaoServer]:
    with TaoServer(job_id=JOB) as double:
        register(JOB, "tao-dataservices", double.url)
        yield double


def peak_memory(*arguments: str) -> float:
    """Peak resident memory of send_request.py in MB."""
    command = [sys.executable, str(SCRIPTS / "send_request.py"), *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    complaints = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, complaints
    return usage.ru_maxrss * 1024 / 1e6


@pytest.mark.slow
def test_a_video_of_300_mb_takes_no_memory_to_speak_of(server: TaoServer, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    with video.open("wb") as stream:
        stream.write(MP4_HEADER)
        stream.truncate(300_000_000)
    start = peak_memory("--help")
    without = peak_memory(*ASK)
    with_video = peak_memory(*ASK, "--video", str(video))
    assert server.requests[-1].data_uris[0].size == 300_000_000
    assert with_video < start + 80
    assert with_video < without + 10


@pytest.mark.parametrize("size", [99, 101])
def test_a_file_that_changes_while_it_is_sent_is_an_error_and_no_answer(
    server: TaoServer, tmp_path: Path, size: int
) -> None:
    (tmp_path / "x.mp4").write_bytes(bytes(size))
    entry = register(JOB, "tao-dataservices", server.url)
    body = JsonBody({"a": InlinedFile(tmp_path / "x.mp4", "video/mp4", 100)})
    exchange = Exchange(entry, platforms.load("local-process"), body, references.load().wire, 300, 5, lambda _: None)
    with pytest.raises(ToolError, match="changed while it was sent") as caught:
        exchange.complete()
    assert caught.value.type == "file_changed"


def test_a_service_that_never_answers_is_given_up_after_the_timeout(server: TaoServer) -> None:
    entry = register(JOB, "tao-dataservices", server.url)
    wire = references.load().wire
    server.script(CHAT, Answer(text="late", delay=5))
    exchange = Exchange(entry, platforms.load("local-process"), JsonBody({"a": 1}), wire, 0.3, 5, lambda _: None)
    with pytest.raises(
        ToolError, match=r"no byte came from .* for 0.3 s; the service may still be computing"
    ) as caught:
        exchange.complete()
    assert caught.value.type == "timeout"
    assert caught.value.details["log_tail"]
    assert exchange.total_seconds < 3
    assert len(server.requests) == 1, "a request that may still be computed is not sent again"


def test_the_timeout_counts_the_silence_and_not_the_answer(server: TaoServer) -> None:
    server.streaming, server.token_delay = True, 0.2
    entry = register(JOB, "smollm2", server.url)
    wire = references.load().wire
    body = JsonBody({"messages": [{"role": "user", "content": "a b c d"}], "stream": True})
    exchange = Exchange(entry, platforms.load("local-process"), body, wire, 0.6, 5, lambda _: None)
    assert exchange.stream(lambda _: None).content == "You asked: a b c d"
    assert exchange.total_seconds > 1


def test_the_pauses_between_attempts_grow(server: TaoServer) -> None:
    wire = dataclasses.replace(references.load().wire, retry_first_seconds=0.05, retry_longest_seconds=0.2)
    server.script(CHAT, *[Answer(202, body={"error": {"type": "model_loading"}})] * 4)
    entry = register(JOB, "tao-dataservices", server.url)
    exchange = Exchange(entry, platforms.load("local-process"), JsonBody({"a": 1}), wire, 300, 10, lambda _: None)
    started = time.monotonic()
    exchange.complete()
    assert exchange.attempts == 5
    assert 0.05 + 0.1 + 0.2 + 0.2 <= time.monotonic() - started < 3


def at_a_terminal(typed: str, *arguments: str) -> tuple[int, str]:
    """Run send_request.py at a terminal of its own; its exit status and all that was shown there."""
    controller, terminal = pty.openpty()
    command = [sys.executable, str(SCRIPTS / "send_request.py"), *arguments]
    child = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(controller, 4096):
                shown.extend(data)
        except OSError:
            pass  # The other end was closed.

    reader = threading.Thread(target=read)
    reader.start()
    for number, answer in enumerate(typed.splitlines(keepends=True)):
        # Each question ends with its default in brackets.
        eventually(functools.partial(_asked_more_often, shown, number))
        os.write(controller, answer.encode())
    status = child.wait(timeout=30)
    reader.join(timeout=10)
    os.close(controller)
    return status, shown.decode()


def _asked_more_often(shown: bytearray, times: int) -> bool:
    return shown.count(b"]: ") > times


def test_at_a_terminal_all_fields_are_asked_in_one_round_and_bad_values_again(server: TaoServer) -> None:
    status, shown = at_a_terminal("64\n\n9\n\n0.5\n", "--prompt", "hello")
    assert status == 0, shown
    assert "temperature=9: it must be a number, 0 to 2" in shown
    assert shown.count("max_tokens:") == 1
    (request,) = server.requests
    assert request.sampling == {"max_new_tokens": 64, "top_p": 0.8, "temperature": 0.5}
    assert "You asked: hello" in shown
    assert '"content"' not in shown


def test_at_a_terminal_a_streamed_answer_is_text(server: TaoServer) -> None:
    server.streaming = True
    register(JOB, "smollm2", server.url)
    status, shown = at_a_terminal("", "--prompt", "hello", "--accept-defaults", "--stream")
    assert status == 0
    assert "You asked: hello\r\n" in shown
    assert "finished by stop" in shown
    assert "delta" not in shown


@pytest.mark.parametrize("arch", list(references.load().archs))
def test_request_parameters_lists_what_send_request_will_ask_for(server: TaoServer, arch: str) -> None:
    register(JOB, arch, server.url)
    document = run_script("request_parameters", "--job-id", JOB).document
    assert document == run_script("request_parameters", "--network-arch", arch).document
    media = ("--image", "https://example.com/x.png") if arch == "cosmos-rl" else ()
    needs = run_script("send_request", "--prompt", "x", *media, expect=3).document["needs"]
    assert [field["name"] for field in document["fields"]] == [need["name"] for need in needs]
    for field, need in zip(document["fields"], needs, strict=True):
        assert (field["type"], field["default"], field["range"]) == (need["type"], need["default"], need.get("range"))


def test_request_parameters_needs_no_service_for_a_named_arch_and_refuses_an_unknown_one() -> None:
    document = run_script("request_parameters", "--network-arch", "cosmos-predict2.5").document
    assert document["fields"][0]["description"] == "number of video frames"
    assert run_script("request_parameters", "--network-arch", "nope", expect=2).document["error"]["fix"]
    run_script("request_parameters", expect=2)

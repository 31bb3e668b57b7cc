"""send_request.py against a TAO service's wire behaviour: routing, what is sent, and every way it can be answered."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doubles.tao_server import CHAT, READINESS, Answer, TaoServer
from services import LOG_LINES, register
from support import SCRIPTS, Result, eventually, run_script

JOB = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
ASK = ("--prompt", "What is this?", "--accept-defaults")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 50
MP4 = b"\x00\x00\x00\x18ftypisom" + bytes(range(255)) * 51


@pytest.fixture
def server() -> Iterator[TaoServer]:
    with TaoServer(job_id=JOB) as double:
        register(JOB, "tao-dataservices", double.url)
        yield double


def rows() -> list[dict[str, Any]]:
    connection = sqlite3.connect(os.environ["TAO_INF_REQUEST_LOG"])
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute("SELECT * FROM requests ORDER BY id")]
    finally:
        connection.close()


def failed(*arguments: str, status: int = 1) -> dict[str, Any]:
    error: dict[str, Any] = run_script("send_request", *(arguments or ASK), expect=status).document["error"]
    return error


# What is sent


def test_an_answer_comes_back_with_everything_an_agent_relies_on(server: TaoServer) -> None:
    result = run_script("send_request", *ASK, "--system", "Be brief.", "--set", "top_k=5")
    answer = result.document
    assert answer["content"] == "You asked: What is this?"
    assert (answer["job_id"], answer["network_arch"]) == (JOB, "tao-dataservices")
    assert (answer["status"], answer["finish_reason"], answer["usage"]) == (200, "stop", None)
    assert (answer["attempts"], answer["files"]) == (1, [])
    assert answer["parameters"] == {"max_tokens": 1024, "temperature": 0.7, "top_p": 0.8, "top_k": 5}
    assert 0 < answer["first_byte_seconds"] <= answer["latency_seconds"] < 10
    assert f"Sending to job_id={JOB} arch=tao-dataservices url={server.url}/v1/chat/completions" in result.stderr
    (request,) = server.requests
    assert request.system_prompt == "Be brief."
    assert request.sampling == {"max_new_tokens": 1024, "temperature": 0.7, "top_p": 0.8, "top_k": 5}
    assert request.headers["content-type"] == "application/json"
    assert int(request.headers["content-length"]) == request.size


def test_several_texts_and_media_arrive_whole_and_in_order(server: TaoServer, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    (tmp_path / "é.mp4").write_bytes(MP4)
    run_script(
        "send_request", "--prompt", "Größe 😀 \"quoted\" \\ 'single'", "--video", "é.mp4", "--image", "a b.png",
        "--image", "https://example.com/x.png", "--prompt", "-", "--accept-defaults",
        stdin="from standard input\n", cwd=tmp_path,
    )  # fmt: skip
    (request,) = server.requests
    assert request.prompt == "Größe 😀 \"quoted\" \\ 'single'\n\nfrom standard input\n"
    assert request.media == ["data:video/mp4;base64,#0", "data:image/png;base64,#1", "https://example.com/x.png"]
    assert [uri.sha256 for uri in request.data_uris] == [hashlib.sha256(data).hexdigest() for data in (MP4, PNG)]


def test_a_dry_run_shows_the_body_without_media_sends_nothing_and_leaves_no_row(
    server: TaoServer, tmp_path: Path
) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(PNG)
    shown = run_script("send_request", *ASK, "--image", str(file), "--dry-run").document
    assert shown["body"]["messages"][0]["content"][0]["image_url"]["url"] == f"data:image/png;base64,<{len(PNG)} bytes>"
    assert server.requests == []
    assert not Path(os.environ["TAO_INF_REQUEST_LOG"]).exists()
    run_script("send_request", *ASK, "--image", str(file))
    assert server.requests[0].size == shown["body_bytes"]


def test_a_proxy_and_a_netrc_of_the_user_do_not_come_between_us_and_a_local_service(
    server: TaoServer, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter22\n")
    proxy = "http://127.0.0.1:9"
    environ = {"HTTP_PROXY": proxy, "http_proxy": proxy, "ALL_PROXY": proxy, "NO_PROXY": "", "HOME": str(tmp_path)}
    run_script("send_request", *ASK, env=environ)
    assert "authorization" not in server.requests[0].headers


# Who decides


def test_without_values_it_asks_for_each_sampling_field_and_sends_nothing(server: TaoServer) -> None:
    needs = run_script("send_request", "--prompt", "x", "--set", "seed=7", expect=3).document["needs"]
    assert [need["name"] for need in needs] == ["max_tokens", "top_p", "temperature"]
    assert needs[2] == {
        "name": "temperature", "question": "temperature: randomness", "type": "number", "default": 0.7,
        "range": "0 to 2", "required": False,
        "answer_with": "--set temperature=VALUE or --accept-default temperature",
    }  # fmt: skip
    assert server.requests == []


def test_which_of_two_services_is_the_user_s_choice(server: TaoServer) -> None:
    with TaoServer(job_id=OTHER) as second:
        register(OTHER, "cosmos-rl", second.url)
        (need,) = run_script("send_request", *ASK, expect=3).document["needs"]
        assert {option["job_id"] for option in need["options"]} == {JOB, OTHER}
        image = ("--image", "https://example.com/x.png")
        assert run_script("send_request", *ASK, *image, "--network-arch", "cosmos-rl").document["job_id"] == OTHER
        assert run_script("send_request", *ASK, "--job-id", JOB).document["job_id"] == JOB
        assert (len(server.requests), len(second.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("arch", "arguments", "kind"),
    [
        ("cosmos-rl", (), "media_required"),
        ("cosmos-rl", ("--set", "guidance=3"), "field_of_another_arch"),
        ("cosmos-predict2.5", ("--set", "temperature=1"), "field_of_another_arch"),
        ("cosmos-predict2.5", ("--set", "guidance=7.5"), "bad_value"),
        ("cosmos-predict2.5", ("--system", "x"), "no_system_prompt"),
        ("tao-dataservices", ("--set", "negative_prompt=x"), "field_of_another_arch"),
        ("tao-dataservices", ("--image", "s3://bucket/x.png"), "media_protocol_refused"),
        ("tao-dataservices", ("--stream",), "no_streaming"),
        ("tao-dataservices", ("--timeout", "299"), "bad_seconds"),
        ("tao-dataservices", ("--deadline", "nan"), "bad_seconds"),
        ("tao-dataservices", ("--output", "/nowhere/x.txt"), "output_not_writable"),
        ("smollm2", ("--image", "x.png"), "no_media_taken"),
        ("claude", ("--set", "temperature=1.5"), "bad_value"),
    ],
)
def test_what_the_arch_cannot_take_is_refused_before_anything_is_sent(
    server: TaoServer, arch: str, arguments: tuple[str, ...], kind: str
) -> None:
    register(JOB, arch, server.url)
    assert failed(*ASK, *arguments, status=2)["type"] == kind
    assert (server.requests, server.polls) == ([], [])


# Every status of the table


@pytest.mark.parametrize("shape", ["reason", "error"])
def test_a_service_that_loads_is_waited_for(shape: str) -> None:
    with TaoServer(job_id=JOB, shape=shape) as server:
        server.become("loading")
        register(JOB, "tao-dataservices", server.url)

        def load_while_it_is_waited_for() -> None:
            eventually(lambda: server.polls)
            began = time.monotonic()
            eventually(lambda: time.monotonic() - began > 0.5)
            server.become("ready")

        with ThreadPoolExecutor(1) as loader:
            loaded = loader.submit(load_while_it_is_waited_for)
            answer = run_script("send_request", *ASK).document
            loaded.result()
        assert answer["queue_seconds"] > 0.4
        assert len(server.requests) == 1, "the body is sent once, when it can be answered"
    assert rows()[0]["queue_seconds"] > 0.4


@pytest.mark.parametrize(
    "answer",
    [
        Answer(202, body={"error": {"type": "model_loading", "message": "loading"}}),
        Answer(202, body={"error": {"type": "server_initializing", "message": "starting"}}),
        Answer(503, body={"error": {"type": "model_not_ready", "message": "soon"}}),
        Answer(503, body={"status": "not_ready", "reason": "model_not_loaded", "message": "soon"}),
        Answer(503, body="<html>busy</html>", content_type="text/html"),
    ],
)
def test_not_yet_is_tried_again_with_the_whole_body(server: TaoServer, tmp_path: Path, answer: Answer) -> None:
    (tmp_path / "x.mp4").write_bytes(MP4)
    server.script(CHAT, answer, answer)
    sent = run_script("send_request", *ASK, "--video", str(tmp_path / "x.mp4")).document
    assert sent["attempts"] == 3
    assert len({request.sha256 for request in server.requests}) == 1
    assert {request.data_uris[0].sha256 for request in server.requests} == {hashlib.sha256(MP4).hexdigest()}


def test_retry_after_is_honoured(server: TaoServer) -> None:
    server.script(CHAT, Answer(503, body={"reason": "model_loading"}, headers={"Retry-After": "2"}))
    assert run_script("send_request", *ASK).document["queue_seconds"] >= 2


def test_a_service_that_is_not_ready_in_time_is_exit_4_and_may_be_tried_again(server: TaoServer) -> None:
    server.always(CHAT, Answer(202, body={"error": {"type": "model_loading", "message": "layer 3 of 9"}}))
    error = failed(*ASK, "--deadline", "1", status=4)
    assert "layer 3 of 9" in error["message"]
    assert f"wait_ready.py --job-id {JOB}" in error["fix"]
    server.become("loading")
    assert failed(*ASK, "--deadline", "0.3", status=4)["type"] == "not_ready"
    assert [row["error_type"] for row in rows()] == ["not_ready", "not_ready"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"type": "model_load_error", "message": "no such repo"}}, "model_load_error"),
        ({"error": {"type": "initialization_error", "message": "no such repo"}}, "initialization_error"),
        ({"status": "not_ready", "reason": "model_load_failed", "message": "no such repo"}, "model_load_failed"),
        (
            {"status": "not_ready", "reason": "initialization_failed", "message": "no such repo"},
            "initialization_failed",
        ),
    ],
)
def test_a_hard_failure_is_told_at_once_with_the_log_s_tail(server: TaoServer, body: dict[str, Any], kind: str) -> None:
    server.script(CHAT, Answer(503, body=body))
    error = failed()
    assert error["type"] == kind
    assert "no such repo" in error["message"]
    assert error["log_tail"] == list(LOG_LINES)
    (row,) = rows()
    assert (row["error_type"], row["http_status"]) == (kind, 503)


def test_a_model_that_failed_to_load_is_told_without_sending_anything(server: TaoServer) -> None:
    server.become("failed")
    assert failed()["type"] == "model_load_failed"
    assert server.requests == []


def test_an_invalid_request_is_told_in_the_server_s_words(server: TaoServer) -> None:
    server.script(CHAT, Answer(400, body={"error": {"type": "invalid_request", "message": "video has no frames"}}))
    error = failed()
    assert (error["type"], "video has no frames" in error["message"]) == ("invalid_request", True)
    assert rows()[0]["http_status"] == 400


def test_a_missing_endpoint_is_told(server: TaoServer) -> None:
    server.script(CHAT, Answer(404, body="<h1>Not Found</h1>", content_type="text/html"))
    assert failed()["type"] == "no_such_endpoint"


def test_an_exception_in_the_model_is_told_with_the_log_s_tail(server: TaoServer) -> None:
    server.script(CHAT, Answer(500, body={"error": {"type": "internal_error", "message": "CUDA error"}}))
    error = failed()
    assert error["type"] == "inference_failed"
    assert "CUDA error" in error["message"]
    assert error["log_tail"] == list(LOG_LINES)
    assert f"service_logs.py --job-id {JOB}" in error["fix"]
    assert server.requests[0].status == 500


def test_a_log_that_cannot_be_read_hides_no_error(server: TaoServer, tmp_path: Path) -> None:
    for log in tmp_path.rglob("log"):
        log.unlink()
    server.script(CHAT, Answer(500, body={"error": {"message": "CUDA error"}}))
    assert failed()["log_tail"] == []


@pytest.mark.parametrize("status", [302, 405, 429, 502])
def test_any_other_status_is_told_with_the_first_bytes(server: TaoServer, status: int) -> None:
    server.script(CHAT, Answer(status, body="<html>proxy</html>", headers={"Location": "https://example.com/"}))
    error = failed()
    assert error["type"] == "unexpected_status"
    # The HTTP client itself reads a redirect's body away.
    assert f"{status}: {'(empty)' if status == 302 else repr('<html>proxy</html>')}" in error["message"]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [Answer(body="{broken"), Answer(body="<html>hello</html>", content_type="text/html"), Answer(body={"a": 1})],
)
def test_an_answer_that_is_no_completion_shows_its_first_bytes(server: TaoServer, answer: Answer) -> None:
    server.script(CHAT, answer)
    error = failed()
    assert error["type"] == "invalid_answer"
    assert "it begins: " in error["message"]
    (row,) = rows()
    assert (row["error_type"], row["http_status"]) == ("invalid_answer", 200)


def test_a_foreign_service_gets_neither_the_prompt_nor_the_picture(server: TaoServer) -> None:
    register(OTHER, "tao-dataservices", server.url)
    assert failed(*ASK, "--job-id", OTHER)["type"] == "foreign_service"
    assert server.requests == []
    server.always(READINESS, Answer(body={"status": "ready"}))
    server.script(CHAT, Answer(503, body={"reason": "model_loading", "job_id": JOB}))
    assert failed(*ASK, "--job-id", OTHER)["type"] == "foreign_service"


# What the network does


def test_an_answer_that_is_cut_off_is_an_error(server: TaoServer) -> None:
    server.script(CHAT, Answer(text="x" * 5000, truncate=3000))
    error = failed()
    assert error["type"] == "answer_cut_off"
    assert "after 3000 bytes" in error["message"]
    assert error["log_tail"] == list(LOG_LINES)


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_connection_reset_is_an_error_and_the_request_is_not_sent_twice(server: TaoServer, when: str) -> None:
    server.script(CHAT, Answer(reset=when))
    assert failed()["type"] == "connection_lost"
    assert len(server.requests) == 1


def test_a_service_that_died_is_told_with_its_log(server: TaoServer) -> None:
    register(JOB, "tao-dataservices", server.url, dead=True)
    server.script(CHAT, Answer(reset="late"))
    error = failed()
    assert error["type"] == "service_died"
    assert error["log_tail"] == list(LOG_LINES)
    server.close()
    assert failed()["type"] == "service_died"


def test_a_port_where_nothing_listens_yet_is_waited_for(server: TaoServer) -> None:
    server.close()
    assert failed(*ASK, "--deadline", "1", status=4)["type"] == "not_ready"


# What becomes of answers


def test_a_video_goes_to_a_file_and_never_to_the_terminal(server: TaoServer, tmp_path: Path) -> None:
    register(JOB, "cosmos-predict2.5", server.url)
    server.script(CHAT, Answer(video_bytes=3_000_000), Answer(video_bytes=300))
    result = run_script("send_request", *ASK, cwd=tmp_path)
    (saved,) = result.document["files"]
    path = Path(saved["path"])
    assert (path.parent, path.suffix, saved["mime"]) == (tmp_path, ".mp4", "video/mp4")
    assert path.name.startswith(f"{JOB[:8]}-{result.document['request_id'][:8]}")
    assert path.read_bytes() == bytes(3_000_000)
    assert result.document["content"] is None
    assert len(result.stdout) < 2000
    (saved,) = run_script("send_request", *ASK, "--output", "my.mp4", cwd=tmp_path).document["files"]
    assert saved == {"path": str(tmp_path / "my.mp4"), "bytes": 300, "mime": "video/mp4"}


def test_text_goes_to_the_file_that_is_named(server: TaoServer, tmp_path: Path) -> None:
    server.script(CHAT, Answer(text="word " * 10_000))
    document = run_script("send_request", *ASK, "--output", str(tmp_path / "a.txt")).document
    assert (tmp_path / "a.txt").read_text() == "word " * 10_000
    assert document["files"][0]["bytes"] == 50_000
    assert len(document["content"]) < 10_000


def test_a_streamed_answer_is_json_lines_and_its_last_line_is_the_document() -> None:
    with TaoServer(job_id=JOB, streaming=True, token_delay=0.05) as server:
        register(JOB, "smollm2", server.url)
        lines = lines_of(run_script("send_request", "--prompt", "one two three", "--accept-defaults", "--stream"))
    assert "".join(line["delta"] for line in lines[:-1]) == lines[-1]["content"] == "You asked: one two three"
    assert lines[-1]["usage"]["completion_tokens"] == 5
    assert lines[-1]["first_byte_seconds"] < lines[-1]["latency_seconds"] - 0.1
    assert rows()[0]["output_tokens"] == 5


def test_a_stream_that_breaks_is_an_error_in_one_line_after_the_text_that_came() -> None:
    with TaoServer(job_id=JOB, streaming=True) as server:
        register(JOB, "smollm2", server.url)
        server.script(CHAT, Answer(text="one two three", break_after=3))
        result = run_script("send_request", *ASK, "--stream", expect=1)
    lines = lines_of(result)
    assert [line.get("delta") for line in lines[:-1]] == ["one", " two"]
    assert lines[-1]["error"]["type"] == "answer_cut_off"
    assert rows()[0]["error_type"] == "answer_cut_off"


def test_a_service_that_does_not_stream_after_all_is_an_error(server: TaoServer) -> None:
    register(JOB, "smollm2", server.url)
    assert failed(*ASK, "--stream")["type"] == "invalid_answer"


# The request log


def test_every_request_leaves_its_row(server: TaoServer) -> None:
    server.usage = True
    request_id = run_script("send_request", *ASK, "--caller", "alice").document["request_id"]
    run_script("send_request", *ASK, env={"TAO_INF_CALLER": "bob"})
    first, second = rows()
    assert first["request_id"] == request_id
    assert (first["caller"], second["caller"]) == ("alice", "bob")
    assert (first["job_id"], first["network_arch"], first["platform"]) == (JOB, "tao-dataservices", "local-process")
    assert (first["model"], first["route"]) == ("hf_model://org/model", "/v1/chat/completions")
    assert (first["http_status"], first["error_type"], first["input_tokens"], first["output_tokens"]) == (
        200,
        None,
        3,
        5,
    )
    assert 0 < first["queue_seconds"] <= first["first_byte_seconds"] <= first["total_seconds"]
    assert first["cost_usd"] is None


@pytest.mark.parametrize(
    ("number", "status", "error_type"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "interrupted"), (signal.SIGKILL, -9, "unfinished")],
)
def test_an_interrupted_request_is_in_the_log_too(
    server: TaoServer, number: signal.Signals, status: int, error_type: str
) -> None:
    server.script(CHAT, Answer(text="late", delay=30))
    with subprocess.Popen(
        [sys.executable, str(SCRIPTS / "send_request.py"), *ASK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        eventually(lambda: server.requests)
        child.send_signal(number)
        stdout, _ = child.communicate(timeout=20)
    assert child.returncode == status
    assert [row["error_type"] for row in rows()] == [error_type]
    if number != signal.SIGKILL:
        assert b"may still compute its answer" in stdout


def test_a_log_that_cannot_be_written_costs_nobody_the_answer(server: TaoServer, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = run_script("send_request", *ASK, env={"TAO_INF_REQUEST_LOG": str(tmp_path / "folder")})
    assert result.document["content"] == "You asked: What is this?"
    assert "warning" in result.stderr


def test_a_secret_is_neither_printed_nor_logged(server: TaoServer) -> None:
    secret = "hf_abcdefghijklmnop"
    server.script(CHAT, Answer(text=f"the token is {secret}"), Answer(400, body={"error": {"message": secret}}))
    for expect in (0, 1):
        result = run_script("send_request", *ASK, env={"HF_TOKEN": secret}, expect=expect)
        assert secret not in result.stdout + result.stderr
        assert "[redacted]" in result.stdout


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]

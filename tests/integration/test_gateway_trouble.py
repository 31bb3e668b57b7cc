"""The gateway when something goes wrong: clients that leave or stall, upstreams that fail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from decimal import Decimal

import pytest
from doubles.faults import Fault
from gateway_process import CHAT, MESSAGES
from gateway_stack import CLAUDE, SERVICE, Stack, asking, gateway_stack, request_id_of, seen, send
from raw_http import Answer, ask, connected, read_answer, read_until, request
from support import eventually

MIB = 1 << 20
ROUTES = pytest.mark.parametrize(
    ("path", "model"), [(CHAT, CLAUDE), (CHAT, SERVICE), (MESSAGES, CLAUDE), (MESSAGES, SERVICE)]
)
PASSED_ON = pytest.mark.parametrize(("path", "model"), [(CHAT, SERVICE), (MESSAGES, CLAUDE)])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway")) as stack:
        yield stack


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One that has little room and little patience."""
    upstreams = {
        "max_concurrency": 2,
        "queue_limit": 2,
        "queue_seconds": 1,
        "silence_seconds": 1.5,
    }
    with gateway_stack(tmp_path_factory.mktemp("small"), upstreams=upstreams) as stack:
        yield stack


# Clients


@ROUTES
def test_a_client_that_leaves_its_stream_ends_it_upstream_at_once(stack: Stack, path: str, model: str) -> None:
    name = f"leaves-stream-{path}-{model}"
    data = asking(stack, path, model, f"{name} [[words=400; token_delay=0.05]]", stream=True)
    with connected(stack.gateway.port) as connection:
        connection.sendall(data)
        head = read_until(connection, b"word5")
    left = time.monotonic()
    upstream = eventually(lambda: [one for one in seen(stack, model, name) if one.aborted], timeout=5)[0]
    assert upstream.ended is not None and upstream.ended - left < 1
    row = stack.gateway.row(request_id_of(head))
    assert row["error_type"] == "client_disconnected"
    assert row["usage_estimated"] == 1 and 0 < row["output_tokens"] < 400 and row["input_tokens"] > 0
    if model == CLAUDE:
        assert 0 < Decimal(row["cost_usd"]) < Decimal("0.01"), "what was produced is paid for"


@ROUTES
def test_a_client_that_leaves_before_the_answer_ends_it_upstream_at_once(stack: Stack, path: str, model: str) -> None:
    name = f"leaves-early-{path}-{model}"
    with connected(stack.gateway.port) as connection:
        connection.sendall(asking(stack, path, model, f"{name} [[first_byte=20]]"))
        eventually(lambda: seen(stack, model, name))
    left = time.monotonic()
    upstream = eventually(lambda: [one for one in seen(stack, model, name) if one.aborted], timeout=5)[0]
    assert upstream.ended is not None and upstream.ended - left < 1
    (row,) = stack.gateway.rows(
        "error_type = 'client_disconnected' AND stream = 0 AND route = ? AND job_id IS ?",
        path,
        SERVICE if model == SERVICE else None,
        least=1,
    )
    assert row["total_seconds"] < 10


def test_who_always_leaves_before_the_answer_does_not_evade_a_budget(stack: Stack) -> None:
    # Each reads a prompt of some 10,000 tokens, which are a cent; the budget is ten cents.
    for number in range(12):
        name = f"evasion-{number}"
        data = asking(stack, MESSAGES, CLAUDE, f"{name} [[hang=1]] {'word ' * 8000}", "thrifty", max_tokens=10)
        with connected(stack.gateway.port, timeout=10) as connection:
            connection.sendall(data)
            eventually(lambda name=name: seen(stack, CLAUDE, name) or _came(connection), timeout=10)  # type: ignore[misc]
        if not seen(stack, CLAUDE, name):
            break
        eventually(lambda name=name: seen(stack, CLAUDE, name)[0].aborted, timeout=5)  # type: ignore[misc]
    stack.gateway.rows("caller = 'thrifty' AND error_type = 'budget_day'", least=1)
    rows = stack.gateway.rows("caller = 'thrifty'", least=2)
    assert rows[-1]["error_type"] == "budget_day", rows
    assert all(Decimal(row["cost_usd"]) > Decimal("0.008") for row in rows[:-1])
    assert sum(Decimal(row["cost_usd"]) for row in rows) < Decimal("0.1")


def test_a_client_that_leaves_while_it_still_sends_leaves_a_row(stack: Stack) -> None:
    # Once the gateway has read its callers: a client that leaves while they are looked up is nobody yet.
    models = request("GET", "/v1/models", key=stack.gateway.caller_key("app"))
    assert ask(stack.gateway.port, models).status == 200
    before = len(stack.service.requests)
    with connected(stack.gateway.port) as connection:
        head = asking(stack, CHAT, SERVICE, "never complete")
        connection.sendall(head[:-30])
        time.sleep(0.2)
    rows = stack.gateway.rows("error_type = 'client_disconnected' AND model IS NULL", least=1)
    assert rows[0]["caller"] == "app" and len(stack.service.requests) == before


def test_clients_that_do_not_read_hold_no_memory(stack: Stack) -> None:
    # Each answer is 7 MB and more of events, of which the kernel holds a part: were the rest held here, it would show.
    before = stack.gateway.resident_bytes()
    with contextlib.ExitStack() as opened:
        # Not so small that the window closes for good: reading on would take minutes then.
        clients = [opened.enter_context(connected(stack.gateway.port, receive_buffer=1 << 16)) for _ in range(8)]
        for number, connection in enumerate(clients):
            path, model = ((CHAT, SERVICE), (MESSAGES, CLAUDE), (CHAT, CLAUDE), (MESSAGES, SERVICE))[number % 4]
            connection.sendall(asking(stack, path, model, "slow [[words=55000]]", stream=True))
        grown = 0
        for _ in range(30):
            grown = max(grown, stack.gateway.resident_bytes() - before)
            time.sleep(0.1)
        assert grown < 16 * MIB
        # One that goes on reading gets all of it.
        rest = read_until(clients[1], b"message_stop")
        assert b"word54999" in rest
    quick = send(stack, CHAT, SERVICE, "quick")
    assert quick.status == 200


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_200_mib_passes_through_in_flat_memory(stack: Stack, chunked: bool) -> None:
    size = 200 * MIB
    head = b'{"model": "%s", "messages": [{"role": "user", "content": "' % SERVICE.encode()
    tail = b'"}]}'
    filling = os.urandom(MIB // 2).hex().encode()
    digest = hashlib.sha256(head)
    lines = {"Authorization": f"Bearer {stack.gateway.keys['app']}", "Content-Type": "application/json"}
    lines |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(head) + size + len(tail))}
    start = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    start += "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    before, most = stack.gateway.resident_bytes(), 0

    def piece(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if chunked else data

    stack.service.read_pause = 1.0  # a slow upstream must slow the client down, not fill the gateway
    try:
        with connected(stack.gateway.port, timeout=120) as connection:
            connection.sendall(start.encode() + piece(head))
            for _ in range(size // len(filling)):
                connection.sendall(piece(filling))
                digest.update(filling)
                most = max(most, stack.gateway.resident_bytes())
            digest.update(tail)
            connection.sendall(piece(tail) + (b"0\r\n\r\n" if chunked else b""))
            answer = read_answer(connection)
    finally:
        stack.service.read_pause = 0.0
    assert answer.status == 200, answer.body
    assert digest.hexdigest() in answer.json["choices"][0]["message"]["content"]
    assert most - before < 24 * MIB
    row = stack.gateway.row(answer.headers["x-request-id"])
    assert (row["request_bytes"], row["http_status"]) == (len(head) + size + len(tail), 200)


def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(stack: Stack) -> None:
    data = asking(stack, CHAT, SERVICE, "patient").replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n", 1)
    head, _, body = data.partition(b"\r\n\r\n")
    with connected(stack.gateway.port) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert b" 100 " in read_until(connection, b"\r\n\r\n")
        connection.sendall(body)
        assert read_answer(connection).status == 200


def test_a_body_that_is_too_long_is_refused_before_it_is_sent(stack: Stack) -> None:
    data = request("POST", CHAT, key=stack.gateway.keys["app"], headers={"Content-Length": str(600 * MIB)})
    answer = ask(stack.gateway.port, data)
    assert answer.status == 413
    assert stack.gateway.row(answer.headers["x-request-id"])["error_type"] == "invalid_request"


# Upstreams


@ROUTES
@pytest.mark.parametrize("fault", ["status=500", "status=529", "status=503", "reset=1"])
def test_what_fails_before_its_first_byte_is_tried_again(stack: Stack, path: str, model: str, fault: str) -> None:
    name = f"again-{fault}-{path}-{model}"
    answer = send(stack, path, model, f"{name} [[{fault}; times=1; key={name}]]")
    assert answer.status == 200 and len(seen(stack, model, name)) == 2
    # A kept connection that turns out to be closed is replaced without being counted as a failure of the upstream.
    assert stack.gateway.row(answer.headers["x-request-id"])["retries"] == (0 if fault == "reset=1" else 1)


@ROUTES
def test_what_fails_after_its_first_byte_is_never_tried_again(stack: Stack, path: str, model: str) -> None:
    name = f"once-{path}-{model}"
    answer = send(stack, path, model, f"{name} a b c d [[cut_after=5]]", stream=True)
    assert len(seen(stack, model, name)) == 1
    assert stack.gateway.row(answer.headers["x-request-id"])["error_type"] == "upstream_cut"
    assert b"error" in answer.body and b"[DONE]" not in answer.body and b"message_stop" not in answer.body


@ROUTES
def test_an_unstreamed_answer_that_is_cut_is_no_answer(stack: Stack, path: str, model: str) -> None:
    name = f"cut-{path}-{model}"
    answer = send(stack, path, model, f"{name} [[cut_after=0]]")
    assert answer.status == 502 and "error" in answer.json
    row = stack.gateway.row(answer.headers["x-request-id"])
    assert row["error_type"] == "upstream_cut"


@PASSED_ON
def test_a_long_answer_that_is_cut_is_seen_to_be_incomplete(stack: Stack, path: str, model: str) -> None:
    # Its head and half of it are with the client already: all that is left to do is not to end it properly.
    answer = send(stack, path, model, "long [[words=200000; cut_after=0]]", max_tokens=10**6)
    if model == CLAUDE:
        return  # its answers are no longer than 64,000 tokens, which are held
    assert not answer.complete
    rows = stack.gateway.rows("request_id = ?", answer.headers["x-request-id"], least=1)
    assert rows[0]["error_type"] == "upstream_cut"


@PASSED_ON
def test_a_long_answer_passes_through_whole(stack: Stack, path: str, model: str) -> None:
    answer = send(stack, path, model, "long [[words=60000]]")
    text = answer.json["content"][0]["text"] if path == MESSAGES else answer.json["choices"][0]["message"]["content"]
    assert answer.complete and len(text.split()) == 60_000
    assert stack.gateway.row(answer.headers["x-request-id"])["output_tokens"] == 60_000


@ROUTES
def test_retry_after_is_waited_for(stack: Stack, path: str, model: str) -> None:
    name = f"later-{path}-{model}"
    assert send(stack, path, model, f"{name} [[status=429; retry_after=1; times=1; key={name}]]").status == 200
    first, second = seen(stack, model, name)
    assert second.arrived - first.arrived >= 0.95


@ROUTES
def test_a_retry_after_that_is_too_long_is_told_to_the_client(stack: Stack, path: str, model: str) -> None:
    name = f"much-later-{path}-{model}"
    answer = send(stack, path, model, f"{name} [[status=429; retry_after=600]]")
    assert (answer.status, answer.headers["retry-after"]) == (429, "600")
    assert len(seen(stack, model, name)) == 1
    row = stack.gateway.row(answer.headers["x-request-id"])
    assert row["error_type"] == "upstream_rate_limit_error" and row["http_status"] == 429


@ROUTES
def test_what_was_refused_by_the_upstream_is_not_tried_again(stack: Stack, path: str, model: str) -> None:
    name = f"refused-{path}-{model}"
    answer = send(stack, path, model, f"{name} [[status=400]]")
    assert answer.status == 400 and len(seen(stack, model, name)) == 1


@ROUTES
@pytest.mark.parametrize("fault", ["garbage=http", "garbage=body"])
def test_an_upstream_that_speaks_gibberish_is_a_bad_gateway(stack: Stack, path: str, model: str, fault: str) -> None:
    answer = send(stack, path, model, f"gibberish [[{fault}; key={path}{model}]]")
    assert answer.status == 502 and "error" in answer.json


@ROUTES
def test_an_error_in_mid_stream_reaches_the_client_in_its_shape(stack: Stack, path: str, model: str) -> None:
    answer = send(stack, path, model, "a b c d e [[error_after=5]]", stream=True)
    last = [line for line in answer.body.decode().splitlines() if line.startswith("data: ")][-1]
    document = json.loads(last.removeprefix("data: "))
    assert document["error"]["message"] and (document.get("type") == "error") == (path == MESSAGES)
    row = stack.gateway.row(answer.headers["x-request-id"])
    assert row["error_type"] == ("upstream_overloaded_error" if model == CLAUDE else "upstream_server_error")
    assert row["output_tokens"] > 0, "what was produced until then"


def test_an_answer_without_usage_is_estimated(stack: Stack) -> None:
    for stream in (False, True):
        answer = send(stack, CHAT, SERVICE, "one two three [[usage=0]]", stream=stream)
        row = stack.gateway.row(answer.headers["x-request-id"])
        assert row["usage_estimated"] == 1 and row["output_tokens"] > 0 and row["input_tokens"] > 0


def test_no_upstream_is_asked_for_longer_than_it_is_silent(small: Stack) -> None:
    for path, model in ((CHAT, SERVICE), (MESSAGES, CLAUDE)):
        began = time.monotonic()
        answer = send(small, path, model, "silence [[hang=1]]")
        assert answer.status == 504 and time.monotonic() - began < 10
        assert small.gateway.row(answer.headers["x-request-id"])["error_type"] == "upstream_timeout"


@ROUTES
def test_a_stream_that_falls_silent_is_ended_with_an_error(small: Stack, path: str, model: str) -> None:
    answer = send(small, path, model, "a b c d e f [[token_delay=0.4; words=5]]", stream=True)
    assert answer.complete and b"error" not in answer.body, "slow is not silent"
    answer = send(small, path, model, "a b c d e f [[token_delay=30; first_byte=0.1]]", stream=True)
    assert answer.complete and b'"error"' in answer.body
    assert b"message_stop" not in answer.body and b"[DONE]" not in answer.body
    assert small.gateway.row(answer.headers["x-request-id"])["error_type"] == "upstream_timeout"


def test_a_full_queue_refuses_and_says_when_to_come_back(small: Stack) -> None:
    _closed(small, CLAUDE)
    answers: list[Answer] = []

    def one(number: int) -> None:
        answers.append(send(small, MESSAGES, CLAUDE, f"crowd {number} [[first_byte=0.5]]"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status == 503]
    assert len([answer for answer in answers if answer.status == 200]) == 4 and len(refused) == 4
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert small.gateway.row(answer.headers["x-request-id"])["error_type"] == "overloaded"
    queued = small.gateway.rows("http_status = 200 AND queue_seconds > 0.3", least=2)
    assert all(row["total_seconds"] > row["queue_seconds"] for row in queued)


def test_a_place_that_comes_too_late_is_refused(small: Stack) -> None:
    _closed(small, CLAUDE)
    with contextlib.ExitStack() as opened:
        for number in range(2):
            connection = opened.enter_context(connected(small.gateway.port))
            connection.sendall(
                asking(small, MESSAGES, CLAUDE, f"hold {number} [[words=80; token_delay=0.05]]", stream=True)
            )
            read_until(connection, b"word1")
        began = time.monotonic()
        answer = send(small, MESSAGES, CLAUDE, "too late")
        assert answer.status == 503 and 0.8 < time.monotonic() - began < 3
    assert small.gateway.row(answer.headers["x-request-id"])["error_type"] == "overloaded"
    # Those who left have given their places back.
    assert send(small, MESSAGES, CLAUDE, "in time").status == 200


def test_an_upstream_that_keeps_failing_is_left_alone_and_tried_again(small: Stack) -> None:
    _closed(small, SERVICE)
    small.service.always = Fault(status=500)
    try:
        for _ in range(3):
            send(small, CHAT, SERVICE, "fail")
        before = len(small.service.requests)
        answer = eventually(lambda: _with(send(small, CHAT, SERVICE, "fail"), "circuit_open"), timeout=20)
        before = len(small.service.requests)
        again = send(small, CHAT, SERVICE, "fail")
        assert again.status == 503 and len(small.service.requests) == before, "it is left alone"
        assert int(answer.headers["retry-after"]) >= 1
        # Claude is another upstream.
        assert send(small, MESSAGES, CLAUDE, "meanwhile").status == 200
    finally:
        small.service.always = None
    _closed(small, SERVICE)
    assert send(small, CHAT, SERVICE, "well again").status == 200


def test_an_upstream_that_is_not_there_is_a_bad_gateway(stack: Stack) -> None:
    stack.gateway.register("nobody-there", "http://127.0.0.1:1")
    answer = eventually(lambda: _not(send(stack, CHAT, "nobody-there", "Hi"), 404))
    assert answer.status == 502
    assert stack.gateway.row(answer.headers["x-request-id"])["error_type"] == "upstream_unreachable"


def _came(connection: socket.socket) -> bool:
    """Whether something has been answered."""
    return bool(select.select([connection], [], [], 0)[0])


def _with(answer: Answer, code: str) -> Answer | None:
    return answer if code.encode() in answer.body else None


def _not(answer: Answer, status: int) -> Answer | None:
    return None if answer.status == status else answer


def _closed(stack: Stack, model: str) -> None:
    """Wait until the model's breaker is closed."""
    path = CHAT if model == SERVICE else MESSAGES
    eventually(lambda: send(stack, path, model, "are you there").status == 200, timeout=20, every=0.3)

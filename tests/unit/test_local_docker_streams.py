"""Docker's streams: a log that comes in pieces, a pull's events; and calls that an interruption does not cut."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import local_docker_logs as logs
import local_docker_pull as pull
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_docker_interruption import uninterrupted

from inference_service.contracts import Progress
from inference_service.errors import ToolError


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\n\r"), max_size=20), max_size=8), st.data())
def test_lines_are_the_same_wherever_the_stream_is_cut(lines: list[str], data: st.DataObject) -> None:
    stream = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(logs.lines(chunks)) == [
        line.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace") for line in lines
    ]


def test_a_last_line_without_an_end_is_a_line_and_bad_utf8_is_replaced() -> None:
    assert list(logs.lines([b"a\r\n\xff", b"b"])) == ["a", "\ufffdb"]
    assert list(logs.lines([])) == []


def test_a_server_that_never_ends_a_line_is_not_held_in_memory() -> None:
    pieces = list(logs.lines(b"x" * 1000 for _ in range(1000)))
    assert "".join(pieces) == "x" * 1_000_000
    assert max(map(len, pieces)) == logs.LONGEST_LINE_BYTES


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    return {"id": name, "status": status, "progressDetail": {"current": current, "total": total} if total else {}}


def test_a_pulls_fraction_counts_bytes_downloaded_and_unpacked_and_never_goes_back() -> None:
    progress = pull.PullProgress()
    seen = []
    for event in [
        {"status": "Pulling from x", "id": "latest"},
        layer("a", "Downloading", 50, 100),
        layer("a", "Download complete"),
        layer("b", "Downloading", 0, 300),
        layer("b", "Downloading", 300, 300),
        layer("a", "Extracting", 50, 100),
        layer("a", "Pull complete"),
        layer("b", "Pull complete"),
        {"status": "Digest: sha256:1"},
    ]:
        progress.take(event)
        seen.append(round(progress.fraction, 4))
    assert seen == [0.0, 0.25, 0.5, 0.5, 0.5, 0.5625, 0.625, 1.0, 1.0]
    assert progress.total_bytes == 400


def test_an_error_in_the_stream_fails_the_pull() -> None:
    reported: list[Progress] = []
    events = [layer("a", "Downloading", 1, 2), {"error": "no space left on device", "errorDetail": {}}]
    with pytest.raises(ToolError) as failed:
        pull.follow(events, "nvcr.io/a:1", "nvcr.io", reported.append)
    assert failed.value.type == "disk_full"


def test_a_pull_reports_its_stage_and_its_end() -> None:
    reported: list[Progress] = []
    pull.follow([layer("a", "Downloading", 1, 2), layer("a", "Pull complete")], "i:1", "docker.io", reported.append)
    assert reported[0].stage == "pulling"
    assert reported[-1].fraction == 1.0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_runs_to_its_end_before_the_interruption_is_raised(sent: signal.Signals) -> None:
    class Interrupted(BaseException):
        pass

    def raise_it(*_: object) -> None:
        raise Interrupted

    made: list[str] = []

    def create() -> None:
        for _ in range(3):  # an impatient user
            os.kill(os.getpid(), sent)
            time.sleep(0.05)
        made.append("container")

    before = signal.signal(sent, raise_it)
    try:
        with pytest.raises(Interrupted):
            uninterrupted(create)
        assert made == ["container"]
        assert signal.getsignal(sent) is raise_it
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), sent)
            time.sleep(1)
    finally:
        signal.signal(sent, before)


def test_an_interruption_wins_over_the_error_of_the_call_it_came_in() -> None:
    def fail() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError

    with pytest.raises(KeyboardInterrupt) as raised:
        uninterrupted(fail)
    assert isinstance(raised.value.__context__, ValueError)


def test_a_call_from_another_thread_is_simply_made() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(uninterrupted, lambda: 5).result() == 5


def test_a_call_gives_its_result_or_its_error() -> None:
    assert uninterrupted(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda: 1 // 0)

"""A process is the same one only with the same pid and the same start."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from support import eventually

from inference_service import processes


def test_this_process_is_the_same() -> None:
    this = processes.this_process()
    assert this["pid"] == os.getpid()
    assert 0 <= time.time() - this["started"] < 24 * 3600
    assert processes.is_same(this["pid"], this["started"])


def test_the_same_pid_with_another_start_is_another_process() -> None:
    this = processes.this_process()
    assert not processes.is_same(this["pid"], this["started"] - 60)


def test_a_process_that_ended_is_not_the_same_even_while_its_zombie_is_left() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    started = processes.started_at(child.pid)
    assert started is not None and processes.is_same(child.pid, started)
    child.stdin.close()
    assert eventually(lambda: processes.started_at(child.pid) is None), "a zombie counts as running"
    child.wait()
    assert not processes.is_same(child.pid, started)


def test_a_pid_that_cannot_exist_is_no_process() -> None:
    assert processes.started_at(-1) is None
    assert processes.started_at(2**31) is None
    assert processes.started_at(2**70) is None

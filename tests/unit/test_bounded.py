"""Many things at once, for no longer than they are worth."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial

from support import SCRIPTS

from inference_service import bounded


def test_what_hangs_delays_the_others_not_and_the_caller_no_longer_than_said() -> None:
    never = threading.Event()
    done: set[int] = set()

    def hang() -> None:
        never.wait(60)

    began = time.monotonic()
    bounded.run([hang, *(partial(done.add, number) for number in range(200))], 0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert done == set(range(200))
    never.set()


def test_it_returns_when_all_is_done() -> None:
    began = time.monotonic()
    bounded.run([lambda: None] * 3, 60)
    bounded.run([], 60)
    assert time.monotonic() - began < 5


def test_what_hangs_does_not_keep_the_program_from_ending() -> None:
    program = (
        "import time\nfrom inference_service import bounded\nbounded.run([lambda: time.sleep(60)], 0.1)\nprint('ended')"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True, timeout=50
    )
    assert (done.stdout, done.returncode) == ("ended\n", 0)
    assert time.monotonic() - began < 20

"""Several processes share one meter: they charge what one would, and one that is killed takes nothing along."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import processes
from inference_service.gpu_sharing import ProcessorSharing
from inference_service.shared_gpu_sharing import SharedProcessorSharing

SECOND = 10**9
PRICES = [(0, Decimal("3.60"))]
FORK = multiprocessing.get_context("fork")

STEPS = st.lists(
    st.tuples(st.integers(0, 10**11), st.booleans(), st.integers(0, 10**6), st.integers(0, 2)), max_size=40
)
SCHEDULES = st.lists(
    st.tuples(st.integers(-(10**11), 10**12), st.decimals(0, 500, places=9)), max_size=4, unique_by=lambda pair: pair[0]
).map(sorted)


@given(SCHEDULES, STEPS)
def test_meters_on_one_file_are_one_meter(
    prices: Sequence[tuple[int, Decimal]], steps: Sequence[tuple[int, bool, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "meter"
        alone = ProcessorSharing(prices, 0)
        several = [SharedProcessorSharing(file, prices, 0) for _ in range(3)]
        begun: list[tuple[int, int]] = []
        now = 0
        for wait, begins, which, who in [*steps, *((0, False, 0, 0) for _ in steps)]:
            now += wait
            if begins:
                expected, found = alone.begin(now), several[who].begin(now)
                assert expected == found
                if expected is not None and found is not None:
                    begun.append((expected, found))
            elif begun:
                one, other = begun.pop(which % len(begun))
                assert several[who].end(other, now) == alone.end(one, now)
            if which % 7 == 0:
                # As after a restart: what was under way here still is.
                several[who].close()
                several[who] = SharedProcessorSharing(file, prices, now)
            assert several[who].shares(now) == alone.shares(now)
        shares = several[0].shares(now)
        assert shares.charged + shares.idle == shares.cost
        for meter in several:
            meter.close()


def began(meter: SharedProcessorSharing, now: int) -> int:
    begun = meter.begin(now)
    assert begun is not None
    return begun


def _work(file: Path, seed: int, result: Connection) -> None:
    meter = SharedProcessorSharing(file, PRICES, time.time_ns())
    chance = random.Random(seed)
    under_way: list[int] = []
    charged = Decimal(0)
    for number in range(3000):
        if chance.random() < 0.5 and number < 2900:
            under_way.append(began(meter, time.time_ns()))
        elif under_way:
            charged += meter.end(under_way.pop(chance.randrange(len(under_way))), time.time_ns())
    while under_way:
        charged += meter.end(under_way.pop(), time.time_ns())
    result.send(charged)


def test_what_real_processes_charge_at_the_same_time_adds_up_to_the_last_fraction(tmp_path: Path) -> None:
    file = tmp_path / "meter"
    begins = time.time_ns()
    meter = SharedProcessorSharing(file, PRICES, begins)
    pipes = []
    workers = []
    for seed in range(3):
        here, there = FORK.Pipe()
        workers.append(FORK.Process(target=_work, args=(file, seed, there)))
        pipes.append(here)
    for worker in workers:
        worker.start()
    assert all(pipe.poll(60) for pipe in pipes)
    charged: list[Decimal] = [pipe.recv() for pipe in pipes]
    for worker in workers:
        worker.join(60)
    ends = time.time_ns()
    shares = meter.shares(ends)
    assert shares.charged == sum(map(Fraction, charged)) > 0
    assert shares.charged + shares.idle == shares.cost == Fraction(ends - begins, 10**12)
    assert shares.under_way == 0


def _hold(file: Path, ready: Connection) -> None:
    meter = SharedProcessorSharing(file, PRICES, 0)
    meter.begin(0)
    ready.send("begun")
    signal.pause()


def test_the_requests_of_a_killed_process_share_no_longer_and_their_part_is_idle(tmp_path: Path) -> None:
    file = tmp_path / "meter"
    here, there = FORK.Pipe()
    other = FORK.Process(target=_hold, args=(file, there))
    other.start()
    assert here.poll(30)
    here.recv()
    meter = SharedProcessorSharing(file, PRICES, 0)
    ours = began(meter, 0)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    # Until somebody looks (every ten seconds at most) the dead one counts, and what was its part is nobody's.
    assert meter.end(began(meter, 5 * SECOND), 5 * SECOND) == 0
    assert meter.end(began(meter, 20 * SECOND), 20 * SECOND) == 0
    assert meter.end(ours, 30 * SECOND) == Decimal("0.0025") + Decimal("0.015") + Decimal("0.010")
    shares = meter.shares(30 * SECOND)
    assert (shares.idle, shares.under_way) == (Fraction("0.0025"), Fraction(0))


def test_a_meter_whose_last_process_was_killed_goes_on_as_idle(tmp_path: Path) -> None:
    file = tmp_path / "meter"
    here, there = FORK.Pipe()
    other = FORK.Process(target=_hold, args=(file, there))
    other.start()
    assert here.poll(30)
    here.recv()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    shares = SharedProcessorSharing(file, PRICES, 50 * SECOND).shares(60 * SECOND)
    assert (shares.charged, shares.under_way) == (Fraction(0), Fraction(0))
    assert shares.idle == shares.cost == Fraction("0.060")


def test_a_request_that_was_taken_out_by_mistake_still_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = [SharedProcessorSharing(tmp_path / "meter", PRICES, 0) for _ in range(2)]
    begun = began(one, 0)
    monkeypatch.setattr(processes, "is_same", lambda *_: False)
    other.shares(10 * SECOND)
    assert one.end(begun, 20 * SECOND) == Decimal("0.010")
    shares = one.shares(20 * SECOND)
    assert (shares.idle, shares.under_way) == (Fraction("0.010"), Fraction(0))


_KILLED = """
import sys, time
from decimal import Decimal
from pathlib import Path
from inference_service.shared_gpu_sharing import SharedProcessorSharing
meter = SharedProcessorSharing(Path(sys.argv[1]), [(0, Decimal("3.60"))], 0)
print("ready", flush=True)
while True:
    meter.end(meter.begin(time.time_ns()), time.time_ns())
"""


def test_killed_in_the_middle_of_anything_it_neither_locks_nor_tears_the_meter(tmp_path: Path) -> None:
    file = tmp_path / "meter"
    meter = SharedProcessorSharing(file, PRICES, 0)
    scripts = str(Path(processes.__file__).parents[1])
    for attempt in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": scripts},
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            before = meter.shares(0).charged
            while meter.shares(0).charged == before:
                assert other.poll() is None
            time.sleep(random.Random(attempt).random() / 1000)
            other.kill()
        now = time.time_ns()
        begun = began(meter, now)
        shares = meter.shares(now)
        assert meter.end(begun, now + SECOND) == Decimal("0.001")
        assert shares.cost == Fraction(now, 10**12)
        shares = meter.shares(now + SECOND)
        assert shares.charged + shares.idle == shares.cost


def test_a_file_that_was_never_written_to_is_a_new_meter(tmp_path: Path) -> None:
    file = tmp_path / "meter"
    file.write_bytes(b"\0" * 100)
    shares = SharedProcessorSharing(file, PRICES, 5 * SECOND).shares(6 * SECOND)
    assert shares.idle == shares.cost == Fraction("0.001")


def test_a_meter_that_cannot_be_made_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="meter"):
        SharedProcessorSharing(tmp_path / "none" / "meter", PRICES, 0)

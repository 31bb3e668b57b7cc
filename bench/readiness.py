"""How late readiness is noticed, and how soon a failed load is: this poller against the published skill's template.

The template asks the readiness endpoint every 10 s, takes status 200 for ready, reads no other word, and gives up after
600 s. Both wait at the same time for servers of the same kind (the double of a TAO server, which is ready, or fails,
after a known time), so the machine's load is the same for both. What the template does on a failed load follows from
its rule and is not waited for.

    python bench/readiness.py            about 40 s
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SKILL / "scripts"), str(SKILL / "tests")]

import requests  # noqa: E402
from doubles.fake_driver import FakeDriver  # noqa: E402
from doubles.tao_server import READINESS, TaoServer  # noqa: E402

from inference_service import readiness  # noqa: E402
from inference_service.contracts import ServiceEntry, StartedService  # noqa: E402
from inference_service.errors import ToolError  # noqa: E402

JOB_ID = "5f0c6b7e-0000-4000-8000-000000000001"
LOAD_SECONDS = (0.5, 2.0, 12.0, 32.0)
FAILS_AFTER_SECONDS = 4.0
TEMPLATE_EVERY_SECONDS = 10.0
TEMPLATE_GIVES_UP_SECONDS = 600.0


@dataclass
class Lag:
    """Seconds from being ready to being reported ready, by either, and how often each asked until then."""

    load_seconds: float
    ours: float = 0.0
    template: float = 0.0
    our_requests: int = 0
    template_requests: int = 0


def main() -> None:
    """Print the figures, and the same as one JSON line at the end."""
    lags = [Lag(seconds) for seconds in LOAD_SECONDS]
    work = [threading.Thread(target=target, args=(lag,)) for lag in lags for target in (measure_ours, measure_template)]
    for thread in work:
        thread.start()
    failed = seconds_to_report_a_failed_load()
    for thread in work:
        thread.join()

    print("readiness lag after ready, seconds (HTTP requests until then)")
    print(f"{'loads in':>10} {'ours':>14} {'template':>14} {'ratio':>8}")
    for lag in lags:
        ours, template = f"{lag.ours:.2f} ({lag.our_requests})", f"{lag.template:.2f} ({lag.template_requests})"
        print(f"{lag.load_seconds:>8.1f} s {ours:>14} {template:>14} {lag.template / lag.ours:>7.0f}x")
    ratio = TEMPLATE_GIVES_UP_SECONDS / failed
    print(f"\na load that fails after {FAILS_AFTER_SECONDS:g} s is reported")
    print(f"  ours      after {failed:6.2f} s, with the reason and the end of the log")
    print(f"  template  after {TEMPLATE_GIVES_UP_SECONDS:6.0f} s, as a timeout (by its rule)   {ratio:.0f}x")
    summary = {
        "readiness_lag_seconds": {str(lag.load_seconds): {"ours": lag.ours, "template": lag.template} for lag in lags},
        "failed_load_seconds": {
            "fails_after": FAILS_AFTER_SECONDS,
            "ours": failed,
            "template": TEMPLATE_GIVES_UP_SECONDS,
        },
    }
    print("\n" + json.dumps(summary))


def measure_ours(lag: Lag) -> None:
    """Wait for a server of its own with this project's poller."""
    with TaoServer(JOB_ID, load_seconds=lag.load_seconds) as server:
        readiness.wait(entry_of(server), driver(), 120, lambda progress: None)
        lag.ours = time.monotonic() - server.ready_at
        lag.our_requests = len(server.polls)


def measure_template(lag: Lag) -> None:
    """Wait for a server of its own by the template's rule."""
    with TaoServer(JOB_ID, load_seconds=lag.load_seconds) as server:
        deadline = time.monotonic() + TEMPLATE_GIVES_UP_SECONDS
        while time.monotonic() < deadline:
            try:
                if requests.get(server.url + READINESS, timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                pass
            time.sleep(TEMPLATE_EVERY_SECONDS)
        lag.template = time.monotonic() - server.ready_at
        lag.template_requests = len(server.polls)


def seconds_to_report_a_failed_load() -> float:
    """From the start of waiting to the error, for a server that fails after FAILS_AFTER_SECONDS."""
    with TaoServer(JOB_ID, load_seconds=FAILS_AFTER_SECONDS, fail="failed") as server:
        began = time.monotonic()
        try:
            readiness.wait(entry_of(server), driver(), 120, lambda progress: None)
        except ToolError:
            return time.monotonic() - began
    raise AssertionError("a failed load was reported as ready")


def entry_of(server: TaoServer) -> ServiceEntry:
    """The registry entry of that server."""
    return ServiceEntry(JOB_ID, "tao-dataservices", "fake", server.url)


def driver() -> FakeDriver:
    """A platform on which the service runs."""
    return FakeDriver(running={JOB_ID: StartedService(JOB_ID, "tao-dataservices", "fake", "")})


if __name__ == "__main__":
    main()

"""Start an inference service, register it, and wait until it is ready (seed 4).

  start_service.py --platform local-docker --network-arch cosmos-rl --model-path hf_model://org/model --num-gpus 1

A service that cannot become ready is stopped, and the error has the end of its log. One that only takes longer than
--timeout keeps running: wait_ready.py goes on waiting for it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inference_service import output
from inference_service.errors import DecisionNeeded, NotReady, ToolError

if TYPE_CHECKING:
    from inference_service.contracts import LaunchSpec, ServiceEntry
    from inference_service.registry import Registry

_MOST_PORTS_LOST = 3


def parser() -> argparse.ArgumentParser:
    """The command line; the platform's own options are shown once --platform is given."""
    from inference_service import launch_options

    arguments = output.ArgumentParser(__doc__)
    launch_options.add_to(arguments, sys.argv[1:], takes_launch_spec=True)
    add = arguments.add_argument
    add("--no-wait", action="store_true", help="return once it runs, without waiting until it is ready")
    add(
        "--timeout",
        metavar="S",
        type=float,
        default=1800.0,
        help="seconds to wait until it is ready (default: %(default)g)",
    )
    add("--dry-run", action="store_true", help="print what would be created, and create nothing")
    add("--events", action="store_true", help="progress on standard error as JSON lines")
    return arguments


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start it; the document that says where it answers."""
    from inference_service import launch_options, lifecycle, platforms, readiness, registry

    began = time.monotonic()
    readiness.require_timeout(arguments.timeout)
    spec = launch_options.spec_from(arguments, os.environ)
    if arguments.dry_run:
        driver = platforms.load(spec.platform)
        driver.check(spec)
        named = {name: getattr(spec, name) for name in ("job_id", "network_arch", "platform", "image", "model_path")}
        return {
            **named,
            "dry_run": True,
            "secret_env": list(spec.secret_env),
            "would_create": dict(driver.dry_run(spec)),
        }

    if arguments.launch_spec:
        lifecycle.refuse_running(spec)
    services = registry.Registry()
    try:
        entry = _start(spec, arguments, services)
    except (KeyboardInterrupt, output.Terminated) as interruption:
        raise lifecycle.with_what_became_of_it(interruption, spec.job_id, services) from None
    return _document(entry) | {"ready": not arguments.no_wait, "seconds": round(time.monotonic() - began, 2)}


def _start(spec: LaunchSpec, arguments: argparse.Namespace, services: Registry) -> ServiceEntry:
    """The service, started and, unless the user does not wait, ready."""
    from inference_service import lifecycle, platforms, progress, readiness
    from inference_service.contracts import Progress

    driver = platforms.load(spec.platform)
    lost_ports: set[int] = set()
    while True:
        try:
            with progress.reporting(arguments.events) as report:
                entry = lifecycle.start(spec, report, services, lost_ports)
        except DecisionNeeded as decision:
            # The answers are options of the platform; where nobody is there to answer, this raises it again.
            spec = replace(spec, platform_options={**spec.platform_options, **output.decide(decision.needs)})
            continue
        if not arguments.events:
            _say_started(_document(entry))
        try:
            if arguments.no_wait:
                lifecycle.require_alive(entry, driver)
            else:
                with progress.reporting(arguments.events) as report:
                    readiness.wait(entry, driver, arguments.timeout, report)
            # While it was waited for, the way to it may have become another.
            return services.read().services.get(entry.job_id, entry)
        except NotReady as error:
            error.message += "; it keeps running and is registered"
            raise
        except ToolError as error:
            gone = lifecycle.discard(entry, services, error)
            if not gone or spec.host_port is not None or not lifecycle.lost_its_port(entry, error):
                raise
            if len(lost_ports) == _MOST_PORTS_LOST:
                raise
            lost_ports.add(entry.host_port or 0)
            with progress.reporting(arguments.events) as report:
                report(Progress("starting", f"another program took port {entry.host_port} first: starting on another"))


def _document(entry: ServiceEntry) -> dict[str, Any]:
    from inference_service import references

    shown = ("job_id", "network_arch", "platform", "host_url", "host_port", "docker_url", "platform_job_id", "image",
             "model_path", "num_gpus", "started_at", "stop_after")  # fmt: skip
    document = {name: getattr(entry, name) for name in shown}
    return document | {"url": entry.host_url.rstrip("/") + references.load().wire.chat_completions}


def _say_started(document: dict[str, Any]) -> None:
    output.note("Inference service started.")
    output.note(f"  Job ID : {document['job_id']}")
    output.note(f"  Arch   : {document['network_arch']}")
    output.note(f"  URL    : {document['url']}")
    output.note("Use this Job ID to send requests or stop the service.")


if __name__ == "__main__":
    sys.exit(output.run(parser(), main))

"""How a service on an instance is reached: directly where its port answers, through a port-forward where not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import brev_cli as cli
import brev_instances
import brev_tunnel as tunnel

from inference_service import http_session, ports, references
from inference_service.contracts import Progress, Report, ServiceEntry
from inference_service.errors import PortTaken, ToolError
from inference_service.readiness_answers import Verdict, understand

# A server takes seconds until it listens; a firewall is silent.
_DIRECT_SECONDS = 6.0
_CONNECT_SECONDS = 2.0
_LOOK_EVERY_SECONDS = 0.25
_MOST_PORTS_TRIED = 20


def find_way(job_id: str, instance: str, port: int, wanted: str, report: Report) -> tuple[str, dict[str, Any]]:
    """The URL of a service that was just started, and the registry's extra fields about the way to it.

    `wanted` is direct, tunnel or auto; with `auto` a port that does not answer within seconds is reached by a tunnel.

    Raises:
        ToolError: it cannot be reached in the way that is wanted.
    """
    if wanted != "tunnel":
        address = cli.address(instance)
        if address is not None and (wanted == "direct" or _answers(_url(address, port), job_id)):
            return _url(address, port), {"reach": "direct"}
        if wanted == "direct":
            raise ToolError(
                "address_unknown", f"brev's ssh configuration has no address of {instance}", "brev refresh; ssh -G NAME"
            )
        report(Progress("reaching", f"port {port} of {instance} does not answer from here: opening a port-forward"))
    return open_tunnel(job_id, instance, port)


def open_tunnel(job_id: str, instance: str, port: int) -> tuple[str, dict[str, Any]]:
    """A new tunnel in place of any other, on the same port of this machine where that is free."""
    tunnel.end(job_id)
    refs = references.load()
    taken: set[int] = set()
    while True:
        local_port = ports.lowest_free((port, *range(refs.first_port, refs.last_port + 1)), taken, "127.0.0.1")
        try:
            process = tunnel.start(job_id, instance, local_port, port)
        except PortTaken as error:
            # By another program, a moment ago. On the instance the port is ours.
            taken.add(local_port)
            if len(taken) > _MOST_PORTS_TRIED:
                raise ToolError("no_free_port", f"{len(taken)} ports were taken one after the other", "") from error
            continue
        return f"http://localhost:{local_port}", {"reach": "tunnel", "tunnel": process, "local_port": local_port}


def reached(entry: ServiceEntry, report: Report) -> ServiceEntry:
    """The entry as it can be reached now.

    Raises:
        ToolError: its instance does not run, or the tunnel cannot be opened.
    """
    port = entry.host_port
    if port is None:
        return entry
    if entry.extras.get("reach") == "tunnel":
        if tunnel.is_open(entry.extras.get("tunnel"), int(entry.extras.get("local_port") or port)):
            return entry
        said = "has died, opening it again"
    else:
        host = entry.host_url.partition("://")[2].rpartition(":")[0].strip("[]")
        if tunnel.connects(host, port, _CONNECT_SECONDS) != "silent":
            return entry
        # An instance that was stopped and started has another address.
        address = cli.address(brev_instances.of_entry(entry))
        if address not in (None, host) and _probe(_url(str(address), port), entry.job_id) == "ours":
            report(Progress("reaching", f"the instance has another address now: {address}"))
            return replace(entry, host_url=_url(str(address), port))
        said = f"is needed, because {entry.host_url} does not answer any more"
    name = brev_instances.of_entry(entry)
    _require_running(name)
    report(Progress("reaching", f"the port-forward to {name} {said}"))
    url, fields = open_tunnel(entry.job_id, name, port)
    return replace(entry, host_url=url, extras={**entry.extras, **fields})


def adopted(job_id: str, instance: str, port: int, published_to: str) -> tuple[str, Mapping[str, Any]]:
    """The way to a service that was found running; a tunnel that it needs is opened when it is asked something."""
    address = cli.address(instance) if published_to not in ("127.0.0.1", "::1") else None
    if address is not None and _probe(_url(address, port), job_id) == "ours":
        return _url(address, port), {"reach": "direct"}
    return f"http://localhost:{port}", {"reach": "tunnel", "tunnel": None, "local_port": port}


def _answers(url: str, job_id: str) -> bool:
    deadline = time.monotonic() + _DIRECT_SECONDS
    while True:
        heard = _probe(url, job_id)
        if heard != "not_yet" or time.monotonic() > deadline:
            return heard == "ours"
        time.sleep(_LOOK_EVERY_SECONDS)


def _probe(url: str, job_id: str) -> str:
    """`ours` when this very service answers, ready or not; `not_yet` when a connection was refused or dropped, and
    `silent` for all else.

    That a connection is accepted says little: a proxy on the way may accept everything.
    """
    import requests

    wire = references.load().wire
    session = http_session.session_for(ServiceEntry(job_id, "", "", url))
    try:
        with session:
            answer = session.get(url + wire.readiness_path, timeout=_CONNECT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        # Docker takes connections for a server that does not listen yet, and drops them.
        return "silent" if isinstance(error, requests.Timeout) else "not_yet"
    seen = understand(answer.status_code, answer.content, job_id, wire.readiness)
    return "silent" if seen.verdict is Verdict.FOREIGN or seen.word == "no_json" else "ours"


def _require_running(name: str) -> None:
    found = cli.find(name)
    if found is None or not found.running:
        state = found.status if found else "gone"
        fix = f"brev start {name}" if found else "registry.py reconcile --remove-gone"
        raise ToolError("instance_not_running", f"the instance {name} is {state}", fix)


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

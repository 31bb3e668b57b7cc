"""What registry.py's commands do; each returns the document `services`, `latest` and what else it has to say."""

from __future__ import annotations

import argparse
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from inference_service import references, registry_entries, routing
from inference_service.contracts import ServiceEntry
from inference_service.errors import BadInput
from inference_service.registry import Registry, Snapshot

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do `arguments.command`.

    Raises:
        BadInput: there is no such service, or what is to be written is no service's registration.
        ToolError: the registry's file cannot be used.
    """
    registry = Registry()
    commands = {
        "list": _list,
        "show": _show,
        "write": _write,
        "remove": _remove,
        "reconcile": _reconcile,
        "path": _path,
    }
    return commands[arguments.command](registry, arguments)


def entry_document(entry: ServiceEntry) -> dict[str, Any]:
    """An entry as scripts print it: every field, present or not, and the extras beside them."""
    fields = {"job_id": entry.job_id, "reserved_by": None, **registry_entries.to_json(entry)}
    return {**{key: value for key, value in entry.extras.items() if key not in fields}, **fields}


def _list(registry: Registry, arguments: argparse.Namespace) -> dict[str, Any]:
    snapshot = registry.read()
    return _services(list(snapshot.services.values()), snapshot, arguments.offline)


def _show(registry: Registry, arguments: argparse.Namespace) -> dict[str, Any]:
    snapshot = registry.read()
    return _services([routing.find(snapshot, arguments.job_id)], snapshot, arguments.offline)


def _services(entries: Sequence[ServiceEntry], snapshot: Snapshot, offline: bool) -> dict[str, Any]:
    documents = [entry_document(entry) for entry in entries]
    if entries and not offline:
        from inference_service import live_facts

        facts = live_facts.look(entries)
        documents = [{**document, **facts[document["job_id"]].document()} for document in documents]
    return {"services": documents, "latest": snapshot.latest}


def _write(registry: Registry, arguments: argparse.Namespace) -> dict[str, Any]:
    entry = _registration(arguments, registry.read())
    registry.write(entry)
    return {"services": [entry_document(entry)], "latest": registry.read().latest}


def _remove(registry: Registry, arguments: argparse.Namespace) -> dict[str, Any]:
    if not registry.remove(arguments.job_id):
        raise BadInput(
            "unknown_job_id",
            f"there is no service with job_id {arguments.job_id!r}",
            "see those there are: registry.py list",
            job_ids=list(registry.read().services),
        )
    return {"removed": [arguments.job_id], **_all_services(registry.read())}


def _reconcile(registry: Registry, arguments: argparse.Namespace) -> dict[str, Any]:
    from inference_service import reconciliation

    report = reconciliation.reconcile(registry, arguments.remove_gone)
    return {**asdict(report), **_all_services(registry.read())}


def _path(registry: Registry, _arguments: argparse.Namespace) -> dict[str, Any]:
    return {"path": str(registry.path.absolute()), **_all_services(registry.read())}


def _all_services(snapshot: Snapshot) -> dict[str, Any]:
    return {"services": [entry_document(entry) for entry in snapshot.services.values()], "latest": snapshot.latest}


def _registration(arguments: argparse.Namespace, snapshot: Snapshot) -> ServiceEntry:
    """The entry to write. What an earlier registration of the same service says and this one does not is kept."""
    if not _JOB_ID.fullmatch(arguments.job_id) or arguments.job_id == registry_entries.LATEST:
        raise BadInput(
            "bad_job_id",
            f"{arguments.job_id!r} cannot be a job_id",
            "use the container's name: letters, digits, '-', '_' and '.', and not 'latest'",
        )
    refs = references.load()
    refs.arch(arguments.network_arch)
    if arguments.platform not in refs.platforms:
        raise BadInput(
            "unknown_platform",
            f"unknown platform {arguments.platform!r}",
            f"choose one of: {', '.join(refs.platforms)}",
        )
    url = _host_url(arguments.host_url)
    earlier = snapshot.services.get(arguments.job_id)
    if earlier and (earlier.network_arch, earlier.platform) != (arguments.network_arch, arguments.platform):
        raise BadInput(
            "job_id_taken",
            f"service {earlier.job_id} is registered as {earlier.network_arch} on {earlier.platform}",
            f"if that is wrong, forget it first: registry.py remove {earlier.job_id}",
        )
    known = earlier or ServiceEntry(arguments.job_id, arguments.network_arch, arguments.platform, "")
    return ServiceEntry(
        job_id=known.job_id,
        network_arch=known.network_arch,
        platform=known.platform,
        host_url=arguments.host_url.rstrip("/"),
        image=arguments.image or known.image,
        model_path=arguments.model_path or known.model_path,
        num_gpus=known.num_gpus,
        platform_job_id=arguments.platform_job_id or known.platform_job_id,
        host_port=_host_port(arguments.host_port, url),
        docker_url=known.docker_url,
        started_at=known.started_at or registry_entries.now(),
        stop_after=known.stop_after,
        extras=known.extras,
    )


def _host_url(text: str) -> urllib.parse.SplitResult:
    try:
        url = urllib.parse.urlsplit(text)
        port_is_one = url.port is None or url.port > 0
    except ValueError as error:
        raise _bad_url(text, str(error)) from error
    if url.scheme not in ("http", "https") or not url.hostname or not port_is_one or any(map(str.isspace, text)):
        raise _bad_url(text, "it needs http:// or https:// and a host")
    if url.username is not None or url.password is not None:
        raise BadInput(
            "secret_in_url", "--host-url has a user name or password in it, which the registry does not keep", _URL_FIX
        )
    if url.query or url.fragment:
        raise _bad_url(text, "it has a query or a fragment")
    return url


_URL_FIX = "give the service's address alone, like http://localhost:8080"


def _bad_url(text: str, reason: str) -> BadInput:
    return BadInput("bad_host_url", f"{text!r} is not the URL of a service: {reason}", _URL_FIX)


def _host_port(given: int | None, url: urllib.parse.SplitResult) -> int | None:
    if given is None:
        return url.port if url.hostname in _THIS_MACHINE else None
    if not 1 <= given <= 65535:
        raise BadInput("bad_port", f"{given} is not a port", "choose one from 1 to 65535")
    return given

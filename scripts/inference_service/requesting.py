"""One request from the user's words to the printed answer: routed, checked, sent, recorded, its files saved.

Whatever can be refused is refused in `prepare`, before the user is asked anything and before anything is sent.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_service import chat, interruption, media, output, references, results, routing, sampling
from inference_service.body import JsonBody, elided
from inference_service.chat import Completion
from inference_service.contracts import Report, ServiceEntry
from inference_service.errors import BadInput, ToolError
from inference_service.registry import Registry
from inference_service.results import Destination

if TYPE_CHECKING:
    from inference_service.request_log import LoggedRequest, Outcome
    from inference_service.sending import Exchange


@dataclass(frozen=True)
class Wish:
    """What the user asks for, as it was typed. `timeout` and `deadline` (seconds) are None for their defaults."""

    job_id: str | None
    network_arch: str | None
    prompts: Sequence[str]
    system: str | None
    media: Sequence[media.Named]
    assignments: Sequence[str]
    accepted: Sequence[str]
    accept_all: bool
    output: Path | None
    stream: bool
    caller: str | None
    timeout: float | None
    deadline: float | None


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be sent. `document` is its body, JSON but for the local files in it.

    `parameters` are the sampling fields in it, those that were set and those whose default was accepted.
    """

    request_id: str
    entry: ServiceEntry
    url: str
    document: Mapping[str, Any]
    parameters: Mapping[str, Any]
    body: JsonBody
    destination: Destination
    caller: str
    timeout: float
    deadline: float

    def dry_run(self) -> dict[str, Any]:
        """What would be sent, media elided."""
        return {"dry_run": True, **self._target(), "body": elided(self.document), "body_bytes": len(self.body)}

    def answered(self, completion: Completion, exchange: Exchange, seconds: float) -> dict[str, Any]:
        """The answer as JSON, after its files were saved; `seconds` from the beginning to the answer's end."""
        content, files = results.keep(completion, self.destination, references.load().wire)
        queued = exchange.queue_seconds or 0.0
        first_byte = exchange.first_byte_seconds or seconds
        answer = {
            **self._target(),
            "status": exchange.http_status,
            "content": content,
            "finish_reason": completion.finish_reason,
            "usage": completion.usage,
            "parameters": dict(self.parameters),
            "latency_seconds": round(seconds - queued, 4),
            "first_byte_seconds": round(first_byte - queued, 4),
            "queue_seconds": round(queued, 4),
            "attempts": exchange.attempts,
            "files": [file.document() for file in files],
            "request_id": self.request_id,
        }
        return answer | ({"alternatives": list(completion.alternatives)} if completion.alternatives else {})

    def reached_at(self, entry: ServiceEntry, wire: references.Wire) -> Prepared:
        """The same request to the service where it answers now."""
        return replace(self, entry=entry, url=_url(entry, wire))

    def _target(self) -> dict[str, str]:
        return {"job_id": self.entry.job_id, "network_arch": self.entry.network_arch, "url": self.url}


def prepare(wish: Wish, environ: Mapping[str, str] = os.environ) -> Prepared:
    """The request that fulfils the wish.

    Raises:
        BadInput: the service does not exist or cannot take this; nothing was sent.
        DecisionNeeded: the user has to choose a service, or sampling values, and nobody is at a terminal.
    """
    wire = references.load().wire
    timeout = _seconds("--timeout", wish.timeout, wire.request_timeout_seconds, wire.request_timeout_seconds)
    deadline = _seconds("--deadline", wish.deadline, wire.retry_give_up_after_seconds, 0)
    entry = routing.resolve_or_ask(Registry().read(), wish.job_id, wish.network_arch)
    arch = references.load().arch(entry.network_arch)
    chat.refuse_unsupported(arch, wish.system, wish.stream)
    sampling.refuse_bad(arch, wish.assignments, wish.accepted)
    items = media.collect(arch, wish.media, entry.image)
    request_id = str(uuid.uuid4())
    destination = Destination(wish.output, Path.cwd() / f"{entry.job_id[:8]}-{request_id[:8]}")
    destination.check(file_expected=arch.request.answer != "text")
    prompt = chat.prompt_of(wish.prompts)
    values = sampling.resolve(arch, wish.assignments, wish.accepted, wish.accept_all)
    document = chat.request_body(arch, prompt, wish.system, items, values, wish.stream)
    return Prepared(
        request_id=request_id,
        entry=entry,
        url=_url(entry, wire),
        document=document,
        parameters=values,
        body=JsonBody(document),
        destination=destination,
        caller=wish.caller or environ.get("TAO_INF_CALLER") or _user_name(),
        timeout=timeout,
        deadline=deadline,
    )


def send(prepared: Prepared, report: Report, on_text: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Send it, record it, save what belongs in files; the answer as JSON. With `on_text` the answer is streamed.

    Raises:
        ToolError, NotReady: see `sending.Exchange`; the request log has it either way.
    """
    from inference_service import platforms, reaching, request_log
    from inference_service.sending import Exchange

    wire = references.load().wire
    driver = platforms.load(prepared.entry.platform)
    prepared = prepared.reached_at(reaching.reachable(prepared.entry, driver, report), wire)
    log = request_log.open()
    exchange = Exchange(prepared.entry, driver, prepared.body, wire, prepared.timeout, prepared.deadline, report)
    logged_there = _service_writes_our_log(prepared.entry)
    if logged_there:
        exchange.headers.update(_caller_tag(prepared.caller))
    else:
        log.begin(_logged(prepared, wire.chat_completions))
    completion: Completion | None = None
    error_type: str | None = "failed"
    try:
        completion = exchange.complete() if on_text is None else exchange.stream(on_text)
        error_type = None
    except ToolError as error:
        error_type = error.type
        raise
    except (KeyboardInterrupt, output.Terminated) as error:
        error_type = "interrupted"
        given_up = f"request {prepared.request_id} was given up; the service may still compute its answer, unread"
        interruption.telling(error, given_up, "send it again when you are ready")
        raise
    finally:
        seconds = exchange.total_seconds
        if logged_there and exchange.http_status is None:
            # It never got there, so that it has no row of it.
            log.begin(_logged(prepared, wire.chat_completions))
            logged_there = False
        if not logged_there:
            log.finish(prepared.request_id, _outcome(exchange, completion, error_type, seconds))
    return prepared.answered(completion, exchange, seconds)


def _service_writes_our_log(entry: ServiceEntry) -> bool:
    """Whether the service is a gateway, which writes a row for each request, and into this very log.

    As a process of this machine it has the same one, and a row of ours beside it would count the request twice.
    """
    refs = references.load()
    facts = refs.platforms.get(entry.platform)
    return (
        refs.arch(entry.network_arch).launch.caller_key_env is not None and facts is not None and not facts.containers
    )


def _caller_tag(caller: str) -> dict[str, str]:
    """The gateway knows us by our key; for whom we asked stands in a tag, where it can be one."""
    return {"X-Tao-Tags": f"caller={caller}"} if re.fullmatch(r"[A-Za-z0-9_.:/@+ -]{1,100}", caller) else {}


def _logged(prepared: Prepared, route: str) -> LoggedRequest:
    from inference_service import request_log

    entry = prepared.entry
    return request_log.LoggedRequest(
        request_id=prepared.request_id,
        time=datetime.now(timezone.utc),
        caller=prepared.caller,
        job_id=entry.job_id,
        network_arch=entry.network_arch,
        model=entry.model_path or None,
        platform=entry.platform,
        route=route,
    )


def _outcome(exchange: Exchange, completion: Completion | None, error_type: str | None, seconds: float) -> Outcome:
    from inference_service import request_log

    usage = (completion.usage if completion else None) or {}
    return request_log.Outcome(
        total_seconds=seconds,
        http_status=exchange.http_status,
        error_type=error_type,
        queue_seconds=exchange.queue_seconds,
        first_byte_seconds=exchange.first_byte_seconds,
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cached_tokens=chat.cached_tokens(usage),
    )


def _url(entry: ServiceEntry, wire: references.Wire) -> str:
    return entry.host_url.rstrip("/") + wire.chat_completions


def _seconds(option: str, given: float | None, default: float, least: float) -> float:
    if given is None:
        return default
    if not math.isfinite(given) or given < least:
        raise BadInput(
            "bad_seconds",
            f"{option} {given:g}: it must be at least {least:g} seconds",
            f"leave out {option}, or raise it",
        )
    return given


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"

"""Starts and stops services so that nothing is ever lost: whatever runs is registered, and what is registered is true.

A start reserves first, so that a crash leaves a trace that `reconciliation` finds, and undoes everything when it does
not get to the end. A stop forgets a service only after its platform has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import NoReturn

from inference_service import http_session, interruption, output, platforms, ports, readiness, secrets
from inference_service.contracts import Driver, LaunchSpec, PlatformStatus, Progress, Report, ServiceEntry, State
from inference_service.errors import BadInput, NotReady, PortTaken, ToolError
from inference_service.interruption import held_back
from inference_service.reconciliation import settle_reservations
from inference_service.registry import RUNNING, STARTING, Registry, reservation_is_dead

_MOST_PORTS_TRIED = 20
_AT_ONCE_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.1
_STOPPED_AT_A_TIME = 8


@dataclass(frozen=True)
class StopReport:
    """The job_ids that were stopped, those that could not be (job_id, message), and those that were not to be (job_id,
    reason): these two kinds are still registered."""

    stopped: tuple[str, ...]
    failed: tuple[Mapping[str, str], ...]
    kept: tuple[Mapping[str, str], ...] = ()


def start(spec: LaunchSpec, report: Report, registry: Registry, avoid: Collection[int] = ()) -> ServiceEntry:
    """Start the service and register it; its entry. It is not waited for. It gets none of the ports in `avoid`.

    Raises:
        BadInput: the platform cannot run that, a secret is not set, or the host port is not free; nothing was changed.
        ToolError: it could not be started; nothing was left behind, or the message says what was.
        KeyboardInterrupt, Terminated: nothing was left behind, or the exception says what was.
    """
    driver = platforms.load(spec.platform)
    driver.check(spec)
    secrets.read(spec.secret_env)
    settle_reservations(registry, spec.platform)
    try:
        return _start(spec, driver, report, registry, set(avoid))
    except BaseException as error:
        with held_back(deliver=False):
            _undo(spec, driver, registry, error)


def _start(spec: LaunchSpec, driver: Driver, report: Report, registry: Registry, taken: set[int]) -> ServiceEntry:
    bind_address = str(spec.platform_options.get("bind-address") or "127.0.0.1")
    while True:
        with held_back():
            reservation = registry.reserve(spec, driver.needs_host_port, bind_address, exclude=taken)
        try:
            started = driver.start(replace(spec, host_port=reservation.host_port), report)
        except PortTaken as error:
            if spec.host_port is not None or len(taken) >= _MOST_PORTS_TRIED:
                raise
            taken.add(error.port)
            report(Progress("starting", f"port {error.port} was just taken by another program, choosing another"))
            continue
        with held_back():
            # By our own clock: a platform's may be another machine's, or count in seconds, and "the one started last"
            # would be the wrong one.
            return registry.commit(replace(started, started_at=None))


def _undo(spec: LaunchSpec, driver: Driver, registry: Registry, error: BaseException) -> NoReturn:
    """Take back what this start has made, and raise `error` again; it says what could not be taken back."""
    try:
        entry = registry.read().services.get(spec.job_id)
    except ToolError:
        # The registry broke meanwhile. Only a start that got as far as committing can have left something.
        entry = ServiceEntry(
            spec.job_id, spec.network_arch, spec.platform, "", STARTING, reserved_by={"pid": os.getpid()}
        )
    if entry is None or not _is_mine(entry):
        if entry is not None and isinstance(error, KeyboardInterrupt | output.Terminated):
            raise _keeps_running(error, entry) from None
        raise error
    left = _still_there(entry, driver)
    if not left:
        try:
            registry.remove(entry.job_id)
        except ToolError as problem:
            left = f"its entry is still in the registry ({problem.message}): registry.py reconcile clears it"
    if left:
        _tell(error, entry, left)
    raise error


def _is_mine(entry: ServiceEntry) -> bool:
    return entry.status == STARTING and (entry.reserved_by or {}).get("pid") == os.getpid()


def _still_there(entry: ServiceEntry, driver: Driver) -> str:
    """Stop what the platform may have of it; why that failed, or nothing."""
    try:
        driver.stop(entry)
    except Exception as problem:
        if _status(driver, entry).state is State.UNKNOWN:
            # The platform that could not be reached to stop it could not be reached to start it either. Should it have
            # come to life all the same, its labels tell.
            return ""
        return f"it is still registered, because it could not be removed: {problem}"
    return ""


def _tell(error: BaseException, entry: ServiceEntry, left: str) -> None:
    told = f"{entry.job_id}: {left}"
    if isinstance(error, ToolError):
        error.message = f"{error.message}; {told}"
        error.details["left_behind"] = entry.job_id
    else:
        interruption.telling(error, f"interrupted; {told}", f"stop_service.py --job-id {entry.job_id}")


def with_what_became_of_it(error: BaseException, job_id: str, registry: Registry) -> BaseException:
    """The interruption of a start or of the wait after it, saying that the service runs on, where it does."""
    entry = registry.read().services.get(job_id)
    if interruption.told(error) or entry is None or entry.status != RUNNING:
        return error
    return _keeps_running(error, entry)


def _keeps_running(error: BaseException, entry: ServiceEntry) -> BaseException:
    return interruption.telling(
        error,
        f"interrupted; the {entry.network_arch} service {entry.job_id} keeps running and is registered",
        f"wait for it: wait_ready.py --job-id {entry.job_id}, or stop it: stop_service.py --job-id {entry.job_id}",
    )


def require_alive(entry: ServiceEntry, driver: Driver) -> None:
    """Watch a service that was just started for a second: one that dies at once is an error with its log.

    Raises:
        ToolError: it died; `log_tail` has the end of its log.
    """
    deadline = time.monotonic() + _AT_ONCE_SECONDS
    while time.monotonic() < deadline:
        status = _status(driver, entry)
        if status.dead:
            raise readiness.died(entry, driver, status)
        time.sleep(_LOOK_EVERY_SECONDS)


def lost_its_port(entry: ServiceEntry, error: ToolError) -> bool:
    """Whether a service that was stopped after this error had failed because a stranger listened on its port first.

    A platform may start a service that comes to listen only later; in between any program of this machine, or the
    service of another user's registry, can take the port.
    """
    return (
        error.type in ("foreign_service", "service_died")
        and entry.host_port is not None
        and http_session.is_loopback(entry.host_url)
        and not ports.can_bind(entry.host_port, "127.0.0.1")
    )


def discard(entry: ServiceEntry, registry: Registry, error: ToolError) -> bool:
    """Stop a service that will never be ready; whether it is gone. The error's message then says what became of it."""
    done = stop([entry], registry)
    if done.failed:
        error.message = f"{error.message}; it is still registered, it could not be stopped: {done.failed[0]['message']}"
        error.details["left_behind"] = entry.job_id
    else:
        error.message = f"{error.message}; it was stopped and unregistered"
    return not done.failed


def until_started(entry: ServiceEntry, registry: Registry, timeout: float, report: Report) -> ServiceEntry:
    """The entry once the process that is starting the service has registered it as running.

    Raises:
        ToolError: the start failed, or the process that was at it died.
        NotReady: it was not started within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    found: ServiceEntry | None = entry
    if entry.status == STARTING:
        report(Progress(STARTING, f"{entry.platform} is starting it"))
    while found is not None and found.status == STARTING:
        if reservation_is_dead(found):
            raise ToolError(
                "starter_died",
                f"the process that was starting {entry.job_id} has died",
                "registry.py reconcile takes up what it has started, or clears it away",
                job_id=entry.job_id,
            )
        if time.monotonic() > deadline:
            raise NotReady(
                "not_ready",
                f"{entry.job_id} was not started within {timeout:g} s: {entry.platform} is still at it",
                f"wait longer: wait_ready.py --job-id {entry.job_id} --timeout {2 * timeout:g}",
                job_id=entry.job_id,
                last_seen={"state": STARTING, "message": "being started", "http_status": None, "seconds": timeout},
            )
        time.sleep(_LOOK_EVERY_SECONDS)
        found = registry.read().services.get(entry.job_id)
    if found is None:
        raise ToolError(
            "start_failed", f"{entry.job_id} was not started: its start failed or was interrupted", "start it again"
        )
    return found


def stop(
    entries: Sequence[ServiceEntry],
    registry: Registry,
    reason_to_keep: Callable[[ServiceEntry], str] = lambda entry: "",
) -> StopReport:
    """Stop these services, several at a time, and unregister each that is stopped; already gone is success.

    `reason_to_keep` is asked about each, from several threads, at the last moment: why it is not to be stopped after
    all, or nothing.

    Raises:
        KeyboardInterrupt, Terminated: once those that were being stopped are; the exception says which are left.
    """
    stopped: list[str] = []
    failed: dict[str, str] = {}
    kept: dict[str, str] = {}

    def finish(entry: ServiceEntry, future: Future[str]) -> None:
        try:
            if reason := future.result():
                kept[entry.job_id] = reason
                return
            registry.remove(entry.job_id)
            stopped.append(entry.job_id)
        except Exception as error:
            failed[entry.job_id] = str(error)

    with ThreadPoolExecutor(_STOPPED_AT_A_TIME) as pool:
        pending: dict[Future[str], ServiceEntry] = {}
        try:
            with held_back():
                # The drivers are loaded here: importing is nothing for several threads to do at once.
                for entry in entries:
                    pending[pool.submit(_stop, entry, _driver(entry.platform), reason_to_keep)] = entry
            for future in as_completed(list(pending)):
                with held_back():
                    finish(pending.pop(future), future)
        except BaseException as error:
            with held_back(deliver=False):
                pool.shutdown(cancel_futures=True)
                for future, entry in pending.items():
                    if not future.cancelled():
                        finish(entry, future)
            left = [entry.job_id for entry in entries if entry.job_id not in stopped]
            if isinstance(error, KeyboardInterrupt | output.Terminated):
                told = f"interrupted; stopped: {_listed(stopped)}; not stopped and still registered: {_listed(left)}"
                interruption.telling(error, told, "stop_service.py --all stops the rest")
            raise
    order = [entry.job_id for entry in entries]
    return StopReport(
        tuple(sorted(stopped, key=order.index)),
        tuple({"job_id": job_id, "message": failed[job_id]} for job_id in order if job_id in failed),
        tuple({"job_id": job_id, "reason": kept[job_id]} for job_id in order if job_id in kept),
    )


def _driver(platform: str) -> Driver | BadInput:
    try:
        return platforms.load(platform)
    except BadInput as error:
        return error


def _stop(entry: ServiceEntry, driver: Driver | BadInput, reason_to_keep: Callable[[ServiceEntry], str]) -> str:
    if reason := reason_to_keep(entry):
        return reason
    if isinstance(driver, BadInput):
        raise driver
    if entry.status == STARTING and not reservation_is_dead(entry):
        # Its starter would register a service that is no more.
        pid = (entry.reserved_by or {}).get("pid")
        raise ToolError(
            "being_started", f"process {pid} is still starting it: interrupt that (kill {pid}), or wait for it"
        )
    driver.stop(entry)
    return ""


def _status(driver: Driver, entry: ServiceEntry) -> PlatformStatus:
    try:
        return driver.status(entry)
    except ToolError as error:
        return PlatformStatus(State.UNKNOWN, error.message)


def _listed(job_ids: Sequence[str]) -> str:
    return ", ".join(job_ids) or "none"

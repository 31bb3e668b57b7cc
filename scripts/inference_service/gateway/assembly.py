"""Puts one process's gateway together, and takes it apart again."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets as randomness
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from inference_service import sql
from inference_service.callers.accounts import Accounts
from inference_service.callers.settlement import settle
from inference_service.errors import ToolError
from inference_service.gateway import facts as gateway_facts
from inference_service.gateway import json_log, metrics_snapshot, tracing
from inference_service.gateway.gateway import LIVE, Gateway
from inference_service.gateway.metrics import Metrics
from inference_service.gateway.metrics_snapshot import SnapshotFiles
from inference_service.gateway.redaction import Redactor
from inference_service.gateway.reloading import Reloading
from inference_service.gateway.settings import Settings
from inference_service.request_log import bodies
from inference_service.request_log.recorder import Recorder

log = logging.getLogger("gateway")

_SNAPSHOT_SECONDS = 1.0
_RETRY_SECONDS = 1.0


def _warn(sentence: str) -> None:
    log.warning("%s", sentence)


@dataclass(frozen=True)
class Parts:
    """A gateway and what runs beside it. `closing` are what is closed at the end, in this order."""

    gateway: Gateway
    reloading: Reloading
    snapshots: SnapshotFiles | None
    closing: Sequence[Any]

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on for as long as the gateway serves."""
        work = [self._read_callers_later()]
        if self.snapshots is not None:
            work.append(self._keep_snapshots(self.snapshots))
        if self.reloading.vendor is not None:
            work.append(self.reloading.vendor.keep_up_to_date())
        return work

    async def close(self) -> None:
        """Bring the rows into the database, give back leases, let go of everything."""
        gateway = self.gateway
        await gateway.recorder.close()
        await gateway.accounts.close()
        for part in self.closing:
            await asyncio.to_thread(part.close)

    async def begin(self) -> None:
        """Read the callers, so that their first request finds them known. Where the database is not there yet, that is
        said, and goes on in `work`: until then nobody with a key of its own is let in."""
        error = await self._read_callers()
        if error is not None:
            log.error("the database cannot be used yet: %s", error)

    async def _read_callers_later(self) -> None:
        while not self.gateway.callers_known:
            await asyncio.sleep(_RETRY_SECONDS)
            await self._read_callers()

    async def _read_callers(self) -> Exception | None:
        try:
            await self.gateway.accounts.start()
        except (ToolError, asyncio.TimeoutError) as error:
            return error
        self.gateway.callers_known = True
        return None

    async def _keep_snapshots(self, snapshots: SnapshotFiles) -> None:
        while True:
            await asyncio.sleep(_SNAPSHOT_SECONDS)
            snapshot = self.gateway.metrics.snapshot(self.gateway.gauges(), time())
            snapshot[LIVE] = self.gateway.own_live_requests()
            try:
                snapshots.write(metrics_snapshot.dumps(snapshot))
            except OSError as error:
                log.warning("the other workers do not see this one's metrics: %s", error)


def assemble(settings: Settings) -> Parts:
    """The parts of a gateway with these settings, on the running event loop. The database need not be there yet.

    Raises:
        ToolError: a reference file, the registry or the prices cannot be used.
    """
    facts = gateway_facts.load()
    # Names this process among all that ever were: leases and rows belong to it.
    name = f"{os.uname().nodename}-{os.getpid()}-{randomness.token_hex(4)}"
    recorder = Recorder(settings.database, settle=settle, report=_warn)
    kept = bodies.BodyLog(sql.open(settings.database), report=_warn) if settings.log_bodies else None
    gateway = Gateway(
        settings,
        bodies=kept,
        name=name,
        database=sql.open(settings.database),
        accounts=Accounts(sql.open(settings.database), name),
        recorder=recorder,
        metrics=Metrics(),
        request_seconds=facts.silence_seconds,
    )
    reloading = Reloading(gateway, facts)
    gateway.vendor = reloading.vendor
    gateway.look = reloading.look
    redact = Redactor(os.environ, [settings.admin_key, settings.owner_key, settings.upstream_key])
    closing: list[Any] = [reloading, *([] if kept is None else [kept])]
    if settings.json_log:
        lines = json_log.JsonLog(redact)
        gateway.observers.append(lines.observe)
        closing.append(lines)
    gateway.tracing = tracing.open(os.environ, {facts.own_arch: facts.vendor_name.lower()}, redact, name)
    if gateway.tracing is not None:
        closing.append(gateway.tracing)
    snapshots = None
    if settings.workers > 1 and settings.run_directory is not None:
        gateway.snapshots = snapshots = SnapshotFiles(settings.run_directory, str(os.getpid()))
    recorder.start()
    return Parts(gateway, reloading, snapshots, closing)

"""Puts one process's gateway together, and takes it apart again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import orjson

from inference_service import sql
from inference_service.callers.accounts import Accounts
from inference_service.callers.settlement import settle
from inference_service.gateway import facts as gateway_facts
from inference_service.gateway import json_log, tracing
from inference_service.gateway.gateway import Gateway
from inference_service.gateway.metrics import Metrics
from inference_service.gateway.metrics_snapshot import SnapshotFiles
from inference_service.gateway.reloading import Reloading
from inference_service.gateway.settings import Settings
from inference_service.gateway.translation import Translation
from inference_service.request_log.journal import Journal
from inference_service.request_log.recorder import Recorder

_SNAPSHOT_SECONDS = 1.0


@dataclass(frozen=True)
class Parts:
    """A gateway and what runs beside it."""

    gateway: Gateway
    reloading: Reloading
    accounts: Accounts
    recorder: Recorder
    snapshots: SnapshotFiles
    observers: Sequence[Any]

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on for as long as the gateway serves."""
        work = [self.accounts.keep_up_to_date(), self._keep_snapshots()]
        if self.reloading.vendor is not None:
            work.append(self.reloading.vendor.keep_up_to_date())
        return work

    async def _keep_snapshots(self) -> None:
        while True:
            await asyncio.sleep(_SNAPSHOT_SECONDS)
            self.snapshots.write(self.gateway.metrics.snapshot(self.gateway.gauges(), datetime.now().timestamp()))

    async def close(self) -> None:
        """Give back leases, bring the rows into the database, let go of everything."""
        await self.accounts.close()
        await self.recorder.close()
        for observer in self.observers:
            await asyncio.to_thread(observer.close)
        self.snapshots.close()
        self.reloading.close()


async def assemble(settings: Settings) -> Parts:
    """The parts of a gateway with these settings. The database need not be there yet; keys and limits need it.

    Raises:
        ToolError: a reference file, the registry or the prices cannot be used.
    """
    facts = gateway_facts.load()
    database = sql.open(settings.database)
    journal = Journal(settings.state_directory / "gateway-journal")
    recorder = Recorder(database, journal, settle)
    accounts = Accounts(database)
    gateway = Gateway(
        settings,
        accounts=accounts,
        recorder=recorder,
        metrics=Metrics(),
        translation=Translation(),
        request_seconds=facts.silence_seconds,
    )
    raise NotImplementedError

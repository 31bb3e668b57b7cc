"""What each request to a self-hosted service costs: its share of the service's GPUs, at the prices that hold for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

from inference_service import pricing, pricing_file
from inference_service.contracts import ServiceEntry
from inference_service.gpu_sharing import ProcessorSharing, Shares
from inference_service.pricing import GpuPrice
from inference_service.shared_gpu_sharing import SharedProcessorSharing

Clock = Callable[[], int]
"""The time in nanoseconds since 1970 UTC."""

_NS_PER_SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def steady_clock() -> Clock:
    """A clock that is right now and then goes on evenly, whoever sets this machine's."""
    offset = time.time_ns() - time.monotonic_ns()
    return lambda: time.monotonic_ns() + offset


class ServiceMeter:
    """The meter of one service that has a price, for one thread."""

    def __init__(self, entry: ServiceEntry, prices: Sequence[GpuPrice], clock: Clock, shared_in: Path | None) -> None:
        """Use `service_meter`, which knows whether there is a price. `prices`: those `in_force`, at least one."""
        self._entry = entry
        self._clock = clock
        schedule = _schedule(entry, prices)
        self._sharing = (
            ProcessorSharing(schedule, clock())
            if shared_in is None
            else SharedProcessorSharing(shared_in / f"{entry.job_id}.meter", schedule, clock())
        )
        self._names = _names(prices)

    def begin(self) -> int | None:
        """A request goes to the service from now on. Returns what `end` wants; None where its price is known only from
        a later time on, so that it stays unpriced."""
        return self._sharing.begin(self._clock())

    def end(self, begun: int | None) -> Decimal | None:
        """The request has ended, however. Returns its charge in USD, to 1e-15 USD; call it once for each begin."""
        return None if begun is None else self._sharing.end(begun, self._clock())

    @property
    def priced_by(self) -> str:
        """The price that held at the last event, as a request's row names it."""
        return self._names[max(0, self._sharing.price_number)]

    def upper_bound_nano_usd(self, seconds: float) -> int:
        """The most, in 1e-9 USD and rounded up, that a request of so many seconds can be charged."""
        return self._sharing.upper_bound_nano_usd(math.ceil(seconds * _NS_PER_SECOND))

    def shares(self) -> Shares:
        """What became of the GPUs' cost since the meter was started."""
        return self._sharing.shares(self._clock())

    def close(self) -> None:
        """Leave a meter that is shared; what is under way here is never ended then."""
        if isinstance(self._sharing, SharedProcessorSharing):
            self._sharing.close()

    def change_prices(self, prices: Sequence[GpuPrice]) -> bool:
        """Take the prices of a file that has changed, from now on. False: none of them is for this service."""
        rows = pricing.in_force(self._entry, prices)
        if rows:
            self._sharing.change_prices(_schedule(self._entry, rows), self._clock())
            self._names = _names(rows)
        return bool(rows)


def service_meter(
    entry: ServiceEntry, prices: Sequence[GpuPrice], clock: Clock | None = None, shared_in: Path | None = None
) -> ServiceMeter | None:
    """The service's meter, started now, with the prices of `pricing.gpu_prices()`; None where it has no price.

    It has to see all requests to the service, or the GPU's time is charged twice. Where several processes of this
    machine serve them, each gives the same directory `shared_in`; the meter is in a file there, and goes on from where
    it was when they are started again. Raises OSError where that file cannot be made.
    """
    rows = pricing.in_force(entry, prices) if entry.num_gpus > 0 else []
    return ServiceMeter(entry, rows, clock or steady_clock(), shared_in) if rows else None


def _schedule(entry: ServiceEntry, rows: Sequence[GpuPrice]) -> list[tuple[int, Decimal]]:
    return [(_nanoseconds(row.effective_from), row.usd_per_gpu_hour * entry.num_gpus) for row in rows]


def _names(rows: Sequence[GpuPrice]) -> list[str]:
    return [f"{pricing.PRICED_BY}{_what(row)}@{pricing_file.day_or_moment(row.effective_from)}" for row in rows]


def _what(row: GpuPrice) -> str:
    return f"{row.platform},{row.selector[0]}={row.selector[1]}" if row.selector else row.platform


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000

"""The GPUs of self-hosted services in a time: what they cost, what requests were charged of it, and what was idle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from inference_service import money, pricing, registry_entries
from inference_service.contracts import ServiceEntry
from inference_service.pricing import GpuPrice
from inference_service.registry import GONE


def gpu_lines(
    entries: Sequence[ServiceEntry],
    charged: Mapping[str, Decimal],
    since: datetime | None,
    until: datetime,
    prices: Sequence[GpuPrice] | None = None,
) -> list[dict[str, Any]]:
    """A line for each service with GPUs, in the order of the entries, then for each that only `charged` knows.

    `charged` is what the requests of each job_id that were priced by GPU time (`priced_by` begins with
    pricing.PRICED_BY) cost together in that time, in USD. `since` None: from each service's start. `prices` default to
    `pricing.gpu_prices()`, which may raise ToolError.

    Each line has `job_id`, `network_arch`, `platform`, `num_gpus`, `since` and `until` (ISO 8601 in UTC; that part of
    the time in which the service was there), and in USD `cost_usd` (to 1e-15 USD), `charged_usd` and `idle_usd`, the
    cost less what was charged. Where the cost is not known it and `idle_usd` are None, and `unpriced_because` says why;
    else that is None. An `idle_usd` below 0 shows that more was charged than the GPUs cost, by several gateways which
    each believed to be alone with the service.
    """
    known = pricing.gpu_prices() if prices is None else prices
    lines = [_line(entry, charged.get(entry.job_id), since, until, known) for entry in entries if entry.num_gpus > 0]
    for job_id in sorted(charged.keys() - {entry.job_id for entry in entries}):
        unknown = dict.fromkeys(("network_arch", "platform", "num_gpus"))
        reason = "it is not in the registry any more, so how long it ran is not known"
        lines.append({"job_id": job_id, **unknown, **_times(since, until), **_amounts(None, charged[job_id], reason)})
    return lines


def _line(
    entry: ServiceEntry,
    charged: Decimal | None,
    since: datetime | None,
    until: datetime,
    prices: Sequence[GpuPrice],
) -> dict[str, Any]:
    began = registry_entries.utc(entry.started_at)
    started = datetime.fromisoformat(began) if began else since
    there_since = started if since is None or started is None else max(started, since)
    cost, reason = _cost(entry, since, until, prices)
    return {
        "job_id": entry.job_id,
        "network_arch": entry.network_arch,
        "platform": entry.platform,
        "num_gpus": entry.num_gpus,
        **_times(min(there_since, until) if there_since else None, until),
        **_amounts(cost, charged or Decimal(0), reason),
    }


def _cost(
    entry: ServiceEntry, since: datetime | None, until: datetime, prices: Sequence[GpuPrice]
) -> tuple[Decimal | None, str | None]:
    if entry.status == GONE:
        return None, "it has ended, and when is not known"
    try:
        cost = pricing.cost_between(entry, prices, since, until)
    except pricing.UnpricedError as reason:
        return None, str(reason)
    return money.usd(round(cost * money.FEMTO_PER_USD)), None


def _times(since: datetime | None, until: datetime) -> dict[str, str | None]:
    return {
        "since": since.astimezone(timezone.utc).isoformat() if since else None,
        "until": until.astimezone(timezone.utc).isoformat(),
    }


def _amounts(cost: Decimal | None, charged: Decimal, reason: str | None) -> dict[str, Any]:
    return {
        "cost_usd": cost,
        "charged_usd": charged,
        "idle_usd": None if cost is None else cost - charged,
        "unpriced_because": reason,
    }

"""What requests have in common, and their sums: cells as the database counts them, and sums of cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from inference_service.gateway.dashboard.view import View
from inference_service.request_log.rows import UNFINISHED


class Cell(NamedTuple):
    """The requests of one bucket that are alike. `cost_usd` is a sum of binary fractions: good for looking, while
    `usage_report.py` adds decimals."""

    caller: str
    team: str | None
    model: str | None
    route: str
    http_status: int | None
    error_type: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: float
    unpriced: int
    estimated: int

    def failure(self) -> str | None:
        """The name under which it is counted among the errors: finished, but not with an answer."""
        if self.error_type is not None:
            return None if self.error_type == UNFINISHED else self.error_type
        return f"http_{self.http_status}" if self.http_status is not None and self.http_status >= 400 else None

    def within(self, view: View) -> bool:
        """Whether the view's filters take it."""
        if (
            (view.caller is not None and view.caller != self.caller)
            or (view.team is not None and view.team != self.team)
            or (view.model is not None and view.model != self.model)
            or (view.route is not None and view.route != self.route)
        ):
            return False
        failure = self.failure()
        return (
            view.status is None
            or (view.status == "ok" and failure is None)
            or (failure is not None and view.status in ("error", failure))
        )


class Sums:
    """Sums of requests."""

    __slots__ = (
        "cached_tokens",
        "cost_usd",
        "errors",
        "estimated",
        "input_tokens",
        "output_tokens",
        "requests",
        "unpriced",
    )

    def __init__(self) -> None:
        self.requests = self.errors = self.unpriced = self.estimated = 0
        self.input_tokens = self.output_tokens = self.cached_tokens = 0
        self.cost_usd = 0.0

    def add(self, other: Cell | Sums, errors: int) -> None:
        """Add a cell, or other sums; `errors` of their requests failed."""
        self.errors += errors
        self.requests += other.requests
        self.unpriced += other.unpriced
        self.estimated += other.estimated
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cached_tokens += other.cached_tokens
        self.cost_usd += other.cost_usd

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class Bucket:
    """A bucket's sums under one view's filters, in all that the page tells apart."""

    def __init__(self) -> None:
        self.total = Sums()
        self.callers: dict[tuple[str, str | None], Sums] = {}
        self.models: dict[str | None, Sums] = {}
        self.routes: dict[str, Sums] = {}
        self.failures: dict[tuple[str, int | None], int] = {}

    @classmethod
    def of(cls, cells: Sequence[Cell], view: View) -> Bucket:
        """Of those cells that the view's filters take."""
        bucket = cls()
        for cell in cells:
            if cell.within(view):
                failure = cell.failure()
                errors = 0 if failure is None else cell.requests
                if failure is not None:
                    key = failure, cell.http_status
                    bucket.failures[key] = bucket.failures.get(key, 0) + errors
                bucket.total.add(cell, errors)
                _at(bucket.callers, (cell.caller, cell.team)).add(cell, errors)
                _at(bucket.models, cell.model).add(cell, errors)
                _at(bucket.routes, cell.route).add(cell, errors)
        return bucket

    @classmethod
    def together(cls, buckets: Iterable[Bucket]) -> Bucket:
        """The sum of several."""
        whole = cls()
        for bucket in buckets:
            whole.total.add(bucket.total, bucket.total.errors)
            for mine, theirs in (
                (whole.callers, bucket.callers),
                (whole.models, bucket.models),
                (whole.routes, bucket.routes),
            ):
                for key, sums in theirs.items():
                    _at(mine, key).add(sums, sums.errors)
            for failure, requests in bucket.failures.items():
                whole.failures[failure] = whole.failures.get(failure, 0) + requests
        return whole


def _at(sums: dict[Any, Sums], key: Any) -> Sums:
    found = sums.get(key)
    if found is None:
        found = sums[key] = Sums()
    return found

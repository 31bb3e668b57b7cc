"""The price of a model's tokens at a time: a request is priced with the row that was in force when it came.

Prices come from the files of pricing_file.py, and are loaded again when these change. What has no price is None.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from inference_service import pricing_file, token_price_rows
from inference_service.errors import ToolError
from inference_service.model_price import ModelPrice

LONGEST_MODEL_NAME = 200
"""Characters. Longer names come from somebody who plays; no vendor has such."""

_REMEMBERED_NAMES = 1000


class PriceTable:
    """The prices of all models. Safe to use from one thread while another one refreshes it."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        """The prices of the files; one goes before those after it.

        Raises:
            ToolError: one cannot be read or breaks a rule; the message names file, key and rule.
        """
        self.problem: ToolError | None = None
        """Why the files as they are now could not be loaded, so that those before hold; None where they could."""
        self._files = files
        # Looked at before they are read: what changes in between is then seen as a change next time.
        self._seen = _stamps(files)
        self._lookup = _Lookup(files)

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> PriceTable:
        """The prices of TAO_INF_PRICING's file before those of references/pricing.yaml; raises like the constructor."""
        return cls(pricing_file.files(environ))

    def for_model(self, model: str, at: float, batch: bool = False) -> ModelPrice | None:
        """The model's price at that time (seconds since 1970 UTC), of a batch's requests where they are asked for.

        None: it has no price, or had none yet at that time.
        """
        return self._lookup.find(model, at, batch)

    def changed_on_disk(self) -> bool:
        """Whether a file is another than the one that was last looked at. Takes microseconds."""
        return _stamps(self._files) != self._seen

    def refresh(self) -> bool:
        """Load the files again if they have changed. True: other prices hold from now on.

        Files that cannot be loaded change nothing but `problem`, which then says what is wrong with them. May take a
        tenth of a second when they have changed, microseconds else.
        """
        stamps = _stamps(self._files)
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            lookup = _Lookup(self._files)
        except ToolError as error:
            self.problem = error
            return False
        self.problem = None
        self._lookup = lookup
        return True


class _Lookup:
    """What the files say, and for the names that were asked for before the price with the time in which it holds."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._prices = token_price_rows.read(files)
        self._known: tuple[dict[str, tuple[float, float, ModelPrice | None]], ...] = ({}, {})

    def find(self, model: str, at: float, batch: bool) -> ModelPrice | None:
        known = self._known[batch]
        found = known.get(model)
        if found is None or not found[0] <= at < found[1]:
            found = self._looked_up(model, at, batch)
            if len(known) >= _REMEMBERED_NAMES:
                known.clear()  # Somebody makes names up. The real ones are back at once.
            known[model] = found
        return found[2]

    def _looked_up(self, model: str, at: float, batch: bool) -> tuple[float, float, ModelPrice | None]:
        since, until, price = -math.inf, math.inf, None
        if len(model) <= LONGEST_MODEL_NAME:
            for candidate in self._prices.of(model, batch):
                starts = -math.inf if candidate.effective_from is None else candidate.effective_from.timestamp()
                if starts > at:
                    until = starts
                    break
                since, price = starts, candidate
        return since, until, price


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    """What tells one version of each file from another; None for one that is not there."""
    stamps: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            found = file.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(stamps)

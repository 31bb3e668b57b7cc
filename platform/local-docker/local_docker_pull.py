"""Getting the image: there already, or pulled with progress, or, where it is built here, never pulled."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from inference_service import references
from inference_service.contracts import Progress, Report
from inference_service.docker_errors import explanation, image_not_built, pull_error
from inference_service.docker_images import build_command, registry_of

if TYPE_CHECKING:
    from docker import APIClient

_REPORT_EVERY_SECONDS = 0.5
# A layer's bytes are first downloaded, then unpacked: each counts half.
_DOWNLOADED, _UNPACKED = 0.5, 1.0


def ensure(api: APIClient, image: str, network_arch: str, report: Report) -> None:
    """Make sure that the Docker machine has the image.

    Raises:
        ToolError: it is not there and cannot be pulled; the fix logs in, builds it or names what to check.
    """
    from docker.errors import APIError, ImageNotFound
    from requests.exceptions import RequestException

    try:
        api.inspect_image(image)  # type: ignore[no-untyped-call]
        return
    except ImageNotFound:
        pass
    except APIError as error:
        raise pull_error(explanation(error), image, registry_of(image)) from error
    if command := build_command(image, network_arch, references.load()):
        raise image_not_built(image, command)
    registry = registry_of(image)
    report(Progress("pulling", f"{image} from {registry}"))
    try:
        follow(api.pull(image, stream=True, decode=True), image, registry, report)
    except (APIError, RequestException) as error:
        raise pull_error(explanation(error), image, registry) from error


def follow(events: Iterable[Mapping[str, Any]], image: str, registry: str, report: Report) -> None:
    """Report Docker's stream of pull events until it ends.

    Raises:
        ToolError: the stream says that the pull failed.
    """
    progress = PullProgress()
    last_report = 0.0
    for event in events:
        if "error" in event:
            raise pull_error(str(event["error"]), image, registry)
        progress.take(event)
        if time.monotonic() - last_report >= _REPORT_EVERY_SECONDS:
            last_report = time.monotonic()
            report(_step(image, progress))
    report(Progress("pulling", f"{image}: done", 1.0, {"bytes": progress.total_bytes}))


class PullProgress:
    """How far a pull is, summed over its layers from Docker's events."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._done: dict[str, float] = {}
        self._furthest = 0.0

    @property
    def total_bytes(self) -> int:
        """The size of the layers announced so far, in bytes as downloaded."""
        return sum(self._sizes.values())

    @property
    def fraction(self) -> float:
        """0 to 1, never going back although layers are announced one after the other."""
        total = self.total_bytes
        if total:
            now = sum(size * self._done.get(layer, 0.0) for layer, size in self._sizes.items()) / total
            self._furthest = max(self._furthest, min(now, 1.0))
        return self._furthest

    def take(self, event: Mapping[str, Any]) -> None:
        """Count one event of the stream."""
        layer, status = event.get("id"), event.get("status", "")
        if not isinstance(layer, str):
            return
        detail = event.get("progressDetail") or {}
        current, total = detail.get("current") or 0, detail.get("total") or 0
        if status == "Downloading" and total > 0:
            self._sizes[layer] = total
            self._done[layer] = _DOWNLOADED * min(current / total, 1.0)
        elif status in ("Verifying Checksum", "Download complete"):
            self._done[layer] = max(self._done.get(layer, 0.0), _DOWNLOADED)
        elif status == "Extracting" and total > 0:
            self._done[layer] = _DOWNLOADED + (_UNPACKED - _DOWNLOADED) * min(current / total, 1.0)
        elif status in ("Pull complete", "Already exists"):
            self._done[layer] = _UNPACKED


def _step(image: str, progress: PullProgress) -> Progress:
    # The text changes every ten percent only: where it is printed as lines, a large image must not print thousands.
    fraction = progress.fraction
    return Progress("pulling", f"{image}: {int(fraction * 10) * 10} %", fraction, {"bytes": progress.total_bytes})

"""Asks a service one of its small questions (readiness, liveness): an answer within seconds, or why there was none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inference_service.contracts import ServiceEntry
from inference_service.errors import ToolError

if TYPE_CHECKING:
    import requests

_MOST_BODY_BYTES = 64 * 1024


def get(session: requests.Session, entry: ServiceEntry, path: str, seconds: float) -> tuple[int, bytes] | str:
    """Status and the beginning of the body, within about `seconds`; or in words why there was no answer.

    Raises:
        ToolError: the entry's host_url is no URL.
    """
    import requests

    until = time.monotonic() + seconds
    url = entry.host_url.rstrip("/") + path
    try:
        with session.get(url, timeout=seconds, stream=True, allow_redirects=False) as response:
            body = bytearray()
            # Byte by byte, because a longer read would wait for all of it: a body may trickle, or never end.
            for byte in response.iter_content(1):
                body += byte
                if len(body) >= _MOST_BODY_BYTES:
                    break
                if time.monotonic() > until:
                    return f"no whole answer within {seconds:.1f} s"
            return response.status_code, bytes(body)
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
    ) as error:
        raise ToolError(
            "bad_host_url",
            f"the registry's host_url of {entry.job_id} is no HTTP URL: {entry.host_url!r}",
            f"see registry.py show {entry.job_id}",
        ) from error
    except requests.exceptions.Timeout:
        return f"no answer within {seconds:.1f} s"
    except requests.exceptions.RequestException as error:
        return _in_words(error)


def _in_words(error: Exception) -> str:
    """What went wrong at the bottom of an exception of requests, which wraps it several times over."""
    text = str(error)
    for words in ("Connection refused", "Connection reset by peer", "closed connection without response"):
        if words in text:
            return words.lower()
    return f"{type(error).__name__}: {text}"[:200]

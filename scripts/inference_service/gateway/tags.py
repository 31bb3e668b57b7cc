"""What a caller writes beside a request to find it again in reports: `X-Tao-Tags: feature=search,run=42`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from inference_service.gateway.refusals import Refusal

HEADER = b"x-tao-tags"
MOST = 10
_TAG = re.compile(r"([A-Za-z0-9_.-]{1,40})=([A-Za-z0-9_.:/@+ -]{0,100})")


def parse(value: bytes) -> Mapping[str, str]:
    """The tags by key, in the order written.

    Raises:
        Refusal: 400 where one is malformed or there are more than MOST.
    """
    tags: dict[str, str] = {}
    for part in value.decode("latin-1").split(","):
        part = part.strip()
        if not part:
            continue
        tag = _TAG.fullmatch(part)
        if tag is None:
            raise Refusal(
                400,
                "invalid_request",
                "the header X-Tao-Tags is malformed: it is key=value pairs separated by commas, of letters, digits and"
                " . _ - in a key, and : / @ + and spaces besides in a value",
                param="X-Tao-Tags",
            )
        tags[tag[1]] = tag[2]
    if len(tags) > MOST:
        raise Refusal(400, "invalid_request", f"X-Tao-Tags has {len(tags)} tags, at most {MOST}", param="X-Tao-Tags")
    return tags

"""The dashboard's one file, put together from its parts: markup, style and script, all inline.

The Content-Security-Policy allows this style and these scripts by their hash and nothing else: no other script, no
connection but to this gateway, no frame around it, and no text that becomes markup (Trusted Types).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path

from inference_service.gateway.answers import Answer

_PARTS = Path(__file__).resolve().parent
# In the order in which they build on each other.
SCRIPTS = ("format.js", "elements.js", "charts.js", "tables.js", "address.js", "main.js")


@functools.cache
def page() -> Answer:
    """The page. It holds no data: anybody may have it, and asks for the admin key to fill it."""
    style = _part("page.css")
    script = "\n".join(_part(name) for name in SCRIPTS)
    html = _part("page.html").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script).encode()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return Answer(
        200,
        html,
        b"text/html; charset=utf-8",
        [
            (b"content-security-policy", policy.encode()),
            (b"cache-control", b"no-cache"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-opener-policy", b"same-origin"),
        ],
    )


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

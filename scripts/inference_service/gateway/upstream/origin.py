"""Where an upstream is, and the bytes of a request's head that may be sent there.

Header blocks and targets are made and checked here, once per route where they do not change, so that the hot path joins
bytes that are known to be harmless: no line break, no second Host, no framing but the connection's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2, token
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 5.5, field-value
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_HOST = re.compile(r"[0-9a-zA-Z._-]+|[0-9a-fA-F:.]+(%[0-9a-zA-Z._-]+)?")

# What the connection itself says: a second one would be another way to read the same request.
OWN_HEADERS = frozenset(
    b"host content-length transfer-encoding accept-encoding connection keep-alive upgrade te trailer expect"
    b" proxy-connection".split()
)
_BLOCK = re.compile(
    rb"(?:(?!(?:" + b"|".join(sorted(OWN_HEADERS)) + rb"):)[!#$%&'*+\-.^_`|~0-9a-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*"
)


@dataclass(frozen=True)
class Origin:
    """A scheme, host and port. `host` is a name or an address, IPv6 without brackets."""

    host: str
    port: int
    tls: bool = False

    @property
    def authority(self) -> str:
        """The value of the Host header: no port where it is the scheme's own, no zone of an IPv6 address (RFC 6874)."""
        host = f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_base(url: str) -> tuple[Origin, str]:
    """The origin of a base URL and the path before every target ("" or "/prefix", without a slash at its end).

    Raises ValueError, with the reason, for what is no plain http(s) URL. The message does not repeat a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"the scheme is {parts.scheme!r}, not http or https")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user name or password in the URL is not supported")
    if parts.query or parts.fragment:
        raise ValueError("a base URL has no query and no fragment")
    try:
        host = (parts.hostname or "").encode("idna").decode() if ":" not in (parts.hostname or "") else parts.hostname
        port = parts.port
    except (UnicodeError, ValueError) as error:
        raise ValueError(f"host or port is malformed: {error}") from None
    if not host or not _HOST.fullmatch(host) or port == 0:
        raise ValueError(f"there is no usable host and port in it: {parts.hostname!r}")
    path = parts.path.rstrip("/")
    if path and not _TARGET.fullmatch(path.encode("utf-8", "surrogatepass")):
        raise ValueError(f"the path {parts.path!r} has characters that a URL must escape")
    tls = parts.scheme == "https"
    return Origin(host, port if port is not None else (443 if tls else 80), tls), path


class HeaderBlock(bytes):
    """Header lines that have been checked: made by `header_block`, or by adding two of them."""

    __slots__ = ()

    def __add__(self, other: Buffer) -> bytes:
        joined = bytes(self) + bytes(other)
        return HeaderBlock(joined) if isinstance(other, HeaderBlock) else joined


def header_block(fields: Iterable[tuple[bytes, bytes]]) -> HeaderBlock:
    """The lines of these headers, each with its line end: what `Pool.send` takes.

    Raises ValueError for a name or value that could break out of its line, and for the headers that the connection
    writes itself (OWN_HEADERS).
    """
    lines = []
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {name.decode('ascii')} has a control character in it")
        if name.lower() in OWN_HEADERS:
            raise ValueError(f"the header {name.decode('ascii')} is the connection's own")
        lines.append(b"%b: %b\r\n" % (name, value))
    return HeaderBlock(b"".join(lines))


def check_block(block: bytes) -> None:
    """Raises ValueError unless `block` is whole header lines (or none), without any of the connection's own."""
    if not _BLOCK.fullmatch(block.lower()):
        raise ValueError(
            "a header block is whole lines `name: value` CR LF, without those that the connection writes itself: "
            + ", ".join(name.decode() for name in sorted(OWN_HEADERS))
        )


def request_start(origin: Origin, method: bytes, target: bytes) -> bytes:
    """The request line, Host, and the statement that no compressed answer is understood. Raises ValueError."""
    if not _NAME.fullmatch(method):
        raise ValueError(f"not a method: {method!r}")
    if not _TARGET.fullmatch(target) or b"#" in target:
        raise ValueError(f"not a request target in origin form: {target!r}")
    return b"%b %b HTTP/1.1\r\nhost: %b\r\naccept-encoding: identity\r\n" % (
        method,
        target,
        origin.authority.encode("ascii"),
    )

"""The HTTP session in which a service is spoken to. `requests` is imported here, when the first one is made."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from inference_service.contracts import ServiceEntry

if TYPE_CHECKING:
    import requests


def session_for(entry: ServiceEntry) -> requests.Session:
    """A session for this service.

    A service on this machine is reached directly: a proxy of the environment (HTTP_PROXY) would look for it on its own
    machine, and ~/.netrc has nothing to say to it. Elsewhere the user's proxy settings hold.
    """
    import requests

    session = requests.Session()
    session.trust_env = not is_loopback(entry.host_url)
    return session


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, by name or by a loopback address."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""The HTTP session in which a service is spoken to. `requests` is imported here, when the first one is made.

A service behind a door that wants a token is registered with where the token is, never with the token: an entry's
extras name an environment variable (`auth_env`) or a file that only its owner can read (`auth_file`). An arch that
wants a key of its callers itself (service.yaml's `caller_key_env`) gets it in another header, so that both can be.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from inference_service import references
from inference_service.contracts import ServiceEntry
from inference_service.errors import ToolError

if TYPE_CHECKING:
    import requests

AUTH_ENV = "auth_env"
AUTH_FILE = "auth_file"
CALLER_KEY_HEADER = "x-api-key"
REFUSED = (401, 403)
"""The statuses of who is not let in."""
# What RFC 6750 allows in a header, roughly: a line end in it would be another header.
_TOKEN = re.compile(r"[\x21-\x7e]+")


def session_for(entry: ServiceEntry) -> requests.Session:
    """A session for this service; its requests carry the token and the caller's key that it wants, read anew for each.

    A service on this machine is reached directly: a proxy of the environment (HTTP_PROXY) would look for it on its own
    machine, and ~/.netrc has nothing to say to it. Elsewhere the user's proxy settings hold.

    Raises:
        ToolError: the service's token cannot be read, or would be sent where everybody on the way can read it.
    """
    import requests

    session = requests.Session()
    session.trust_env = not is_loopback(entry.host_url)
    # Without an address there is nowhere to send a token to yet.
    if entry.host_url and _credentials(entry):
        # As `auth`, not as a header: requests then keeps ~/.netrc out of it, and gives it to no other host.
        session.auth = lambda request: _authorized(request, entry)
    return session


def token(entry: ServiceEntry, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token that the service wants, None where it wants none. For the request, and for nothing else.

    Raises:
        ToolError: see `session_for`.
    """
    name, file = entry.extras.get(AUTH_ENV), entry.extras.get(AUTH_FILE)
    if not name and not file:
        return None
    _require_protection(entry)
    value = _of_environment(entry, str(name), environ) if name else _of_file(entry, str(file))
    return _checked(value, _token_source(entry), str(name or file))


def caller_key(entry: ServiceEntry, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key that the service itself wants of its callers, None where it wants none. For the request alone.

    Raises:
        ToolError: see `session_for`.
    """
    name = _caller_key_env(entry)
    if name is None:
        return None
    _require_protection(entry)
    return _checked(_of_environment(entry, name, environ), f"the environment variable {name}", name)


def refused(entry: ServiceEntry, http_status: int) -> ToolError:
    """The error for a service, or what stands before it, that did not let us in."""
    source = describe(entry)
    if source:
        message, fix = (
            f"refuses the token of {source}",
            f"correct {source}: its owner, or who started it, has the token",
        )
    else:
        message, fix = (
            "wants a token, and none is registered",
            "name where it is: registry.py write … --auth-env NAME, or --auth-file FILE",
        )
    return ToolError("unauthorized", f"{entry.host_url} {message} (HTTP {http_status})", fix, job_id=entry.job_id)


def describe(entry: ServiceEntry) -> str:
    """Where the service's token and caller's key come from, in words; empty where it wants none."""
    name = _caller_key_env(entry)
    return " or ".join(filter(None, (_token_source(entry), f"the environment variable {name}" if name else "")))


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


def _authorized(request: requests.PreparedRequest, entry: ServiceEntry) -> requests.PreparedRequest:
    request.headers.update(_credentials(entry))
    return request


def _credentials(entry: ServiceEntry) -> dict[str, str]:
    found, key = token(entry), caller_key(entry)
    return {
        **({"Authorization": f"Bearer {found}"} if found is not None else {}),
        **({CALLER_KEY_HEADER: key} if key is not None else {}),
    }


def _token_source(entry: ServiceEntry) -> str:
    if name := entry.extras.get(AUTH_ENV):
        return f"the environment variable {name}"
    file = entry.extras.get(AUTH_FILE)
    return f"the file {file}" if file else ""


def _caller_key_env(entry: ServiceEntry) -> str | None:
    # A registry may have archs of another release in it.
    arch = references.load().archs.get(entry.network_arch)
    return arch.launch.caller_key_env if arch else None


def _require_protection(entry: ServiceEntry) -> None:
    if not is_loopback(entry.host_url) and urlsplit(entry.host_url).scheme != "https":
        raise ToolError(
            "token_unprotected",
            f"the token of {entry.job_id} is not sent to {entry.host_url}: without https everybody on the way reads it",
            "register the service with its https address, or reach it through a forwarded port of this machine",
        )


def _checked(value: str, source: str, name: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ToolError("token_malformed", f"what {source} holds is no token", f"correct {name}")
    return value


def _of_environment(entry: ServiceEntry, name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise ToolError(
            "token_missing", f"the service {entry.job_id} wants a token, and {name} is not set", f"export {name}=…"
        )
    return value


def _of_file(entry: ServiceEntry, file: str) -> str:
    try:
        # Opened once and looked at then: what is read is what was checked.
        with os.fdopen(
            os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), encoding="utf-8"
        ) as opened:
            about = os.fstat(opened.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
                raise ToolError(
                    "token_file_unsafe",
                    f"{file}, which holds the token of {entry.job_id}, is not a file that only you can read",
                    f"chmod 600 {file}; who could read it has the token: replace it",
                )
            return opened.read().strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ToolError(
            "token_missing",
            f"the token of {entry.job_id} cannot be read from {file}: {why}",
            f"wait_ready.py --job-id {entry.job_id} sets a new one where the platform can; else start it again",
        ) from error

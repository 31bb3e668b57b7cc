"""Database URLs: `sqlite:///path/to/file` and `postgresql://user@host:port/name?sslmode=…`.

A password may stand in a URL that comes from the environment; it is never shown, and never taken from a command line,
where every user of the machine could read it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from inference_service.errors import BadInput

_POSTGRESQL = ("postgresql", "postgres")
_SECRET_PARAMETERS = ("password", "sslpassword")


def dialect(url: str) -> str:
    """`sqlite` or `postgresql`.

    Raises:
        BadInput: neither, or not a URL. The message shows no more of it than its beginning: the rest may be a secret.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "sqlite":
        return "sqlite"
    if separator and scheme in _POSTGRESQL:
        try:
            _ = urlsplit(url).port
        except ValueError:
            raise BadInput(
                "invalid_database_url", "the database URL has an impossible host or port", _EXAMPLES
            ) from None
        return "postgresql"
    shown = f"one of {scheme}" if separator and scheme.isalnum() else "none"
    raise BadInput("invalid_database_url", f"the database URL is {shown}, not of SQLite or PostgreSQL", _EXAMPLES)


_EXAMPLES = "give sqlite:///absolute/path/to/file.db or postgresql://user@host:5432/database"


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite://` URL, always an absolute path: `sqlite:///var/x.db` is `/var/x.db`.

    Raises:
        BadInput: it names no file.
    """
    path = unquote(url.removeprefix("sqlite://"))
    if not path.strip("/") or not path.startswith("/"):
        raise BadInput(
            "invalid_database_url", f"the database URL {url!r} names no file by its absolute path", _EXAMPLES
        )
    return Path("/" + path.lstrip("/"))


def of_sqlite(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite://{quote(str(path.absolute()))}"


def passwords(url: str) -> tuple[str, ...]:
    """Every secret that is written in the URL, as it is spelled there and as it is meant."""
    if dialect(url) == "sqlite":
        return ()
    parts = urlsplit(url)
    # urlsplit unquotes nothing. Only the last @ ends the user's part.
    spelled = [parts.password or ""]
    spelled += [
        pair.partition("=")[2]
        for pair in parts.query.split("&")
        if unquote(pair.partition("=")[0]) in _SECRET_PARAMETERS
    ]
    return tuple({text for each in spelled for text in (each, unquote(each)) if text})


def without_password(url: str) -> str:
    """The URL as it may be shown.

    Raises:
        BadInput: it is none.
    """
    if dialect(url) == "sqlite":
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in _SECRET_PARAMETERS])
    return urlunsplit((parts.scheme, f"{user.partition(':')[0]}{at}{host}", parts.path, query, ""))


def refuse_password(url: str, option: str, variable: str) -> str:
    """The URL that `option` of a command line gave, if there is no password in it.

    Raises:
        BadInput: there is one, or it is no database URL. `variable` is the environment variable to use instead.
    """
    if passwords(url):
        raise BadInput(
            "password_on_command_line",
            f"{option} has a password in it, which every user of this machine can read while the program runs",
            f"export PGPASSWORD=… (or {variable}=…, or ~/.pgpass) and give {option} {without_password(url)}",
        )
    return url

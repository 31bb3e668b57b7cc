"""What can go wrong between the gateway and one upstream, by what it means for a retry.

`error_type` is the word that the request's row carries. `before_any_byte` says that no byte of an answer had come: only
then may the request be sent again without a caller noticing; whether it may have been executed is another question,
which `ConnectFailed` and `PoolBusy` alone answer with a sure no.
"""

from __future__ import annotations


class UpstreamError(Exception):
    """The upstream gave no whole, well-formed answer. The message names host and port."""

    error_type = "upstream_error"

    def __init__(self, message: str, *, before_any_byte: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.before_any_byte = before_any_byte


class PoolBusy(UpstreamError):
    """Every connection this upstream may have was in use until the time was up; nothing was sent."""

    error_type = "overloaded"


class ConnectFailed(UpstreamError):
    """No connection: the name is unknown, the port is closed, the certificate not trusted, nobody answered in time."""

    error_type = "upstream_unreachable"


class Reset(UpstreamError):
    """The connection ended before the answer did."""

    error_type = "upstream_cut"


class TimedOut(UpstreamError):
    """The upstream kept silent for longer than allowed."""

    error_type = "upstream_timeout"


class BadAnswer(UpstreamError):
    """What came is not HTTP/1.1, contradicts itself, or is larger than allowed."""

    error_type = "upstream_bad_answer"


class Closed(UpstreamError):
    """The answer was closed on our own side before it was whole, and read afterwards."""

    error_type = "client_disconnected"

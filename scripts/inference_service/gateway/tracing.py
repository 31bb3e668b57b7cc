"""OpenTelemetry spans of finished requests, sent to an OTLP endpoint by a thread.

A request's two spans, the server's and the client's towards the upstream, are made from its row afterwards, with the
times that are in it; at its beginning only the ids are drawn, because the upstream gets them. So tracing costs a
request microseconds. A collector that is slow or dead costs it nothing: rows wait in a queue of fixed length, and what
does not fit is dropped and counted.

Attributes follow the GenAI and HTTP semantic conventions (github.com/open-telemetry/semantic-conventions-genai, status
Development); what they have no name for is under `tao.`. No prompt and no answer is in a span.

opentelemetry is an extra, imported only when an OTLP endpoint is set. Its exporter, resource and sampler read the usual
OTEL_ variables.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference_service import __version__
from inference_service.errors import ToolError
from inference_service.request_log.rows import RequestRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

MOST_WAITING = 4096
_BATCH = 256
_PAUSE_SECONDS = 1.0

# https://www.w3.org/TR/trace-context/#traceparent-header; a later version may have more fields behind.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST_TRACEPARENT = 512
_OPERATIONS = {"/v1/messages/count_tokens": "count_tokens"}


@dataclass(frozen=True)
class Trace:
    """The ids of one request's spans. `parent_id` is the caller's span, 0 where it sent none."""

    trace_id: int
    parent_id: int
    server_id: int
    client_id: int
    sampled: bool

    @property
    def traceparent(self) -> bytes:
        """The header that makes the upstream's spans children of the client span."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.client_id, self.sampled)


def upstream_traceparent(headers: Mapping[bytes, bytes]) -> bytes | None:
    """What to send on when we make no spans ourselves: the caller's own, if it is one. Header names are lower-case."""
    value = headers.get(b"traceparent")
    return value if value is not None and _parse(value) else None


def open(
    environ: Mapping[str, str], providers: Mapping[str, str], redact: Callable[[str], str], gateway: str = ""
) -> Tracing | None:
    """The process's tracing, or None when no endpoint is set.

    Args:
        providers: `gen_ai.provider.name` of network archs that have a well-known one; others are named themselves.
        redact: cleans the texts that a client chose.
        gateway: this process's name, `service.instance.id`.

    Raises:
        ToolError: an endpoint is set and opentelemetry is not installed.
    """
    if not any(environ.get(name) for name in ENDPOINTS):
        return None
    try:
        return Tracing(environ, providers, redact, gateway)
    except ImportError as error:
        raise ToolError(
            "missing_dependency",
            f"an OTLP endpoint is set, and {error.name} is not installed",
            "pip install 'tao-run-inference-service[tracing]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error


class Tracing:
    """Makes and exports spans. `begin` and `observe` belong to the event loop's thread."""

    def __init__(
        self, environ: Mapping[str, str], providers: Mapping[str, str], redact: Callable[[str], str], gateway: str
    ) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        # It would write a paragraph for every batch that a dead collector does not take; _told says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        ours = {} if _names_service(environ) else {"service.name": "tao-inference-gateway"}
        self._resource = Resource.create({"service.version": __version__, "service.instance.id": gateway, **ours})
        self._sampler = TracerProvider(resource=self._resource, shutdown_on_exit=False).sampler
        self._exporter = OTLPSpanExporter()
        self._providers = providers
        self._redact = redact
        self._random = random.SystemRandom()
        self._waiting: deque[tuple[RequestRow, Trace]] = deque()
        self.dropped = 0
        """Requests whose spans were not exported: the queue was full, or the collector did not take them."""
        self._told = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._export, name="otlp-spans", daemon=True)
        self._thread.start()

    def begin(self, headers: Mapping[bytes, bytes]) -> Trace:
        """Draw the ids of a request that has arrived; the caller's trace goes on if it sent one (names lower-case)."""
        parent = _parse(headers.get(b"traceparent", b""))
        ids = self._random.getrandbits(256)
        trace_id = parent[0] if parent else (ids >> 128) or 1
        parent_id, flags = parent[1:] if parent else (0, 0)
        server_id, client_id = (ids >> 64 & _64_BITS) or 1, (ids & _64_BITS) or 1
        return Trace(trace_id, parent_id, server_id, client_id, self._sampled(trace_id, parent_id, flags))

    def observe(self, row: RequestRow, trace: Trace) -> None:
        """Export a finished request's spans, soon."""
        if not trace.sampled:
            return
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        self._waiting.append((row, trace))

    def close(self, timeout: float = 3.0) -> None:
        """Export what is left, for at most `timeout` seconds."""
        self._closing.set()
        self._thread.join(timeout)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends the waiting for another attempt
        self._thread.join(1.0)

    def _sampled(self, trace_id: int, parent_id: int, flags: int) -> bool:
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context

        context = set_span_in_context(NonRecordingSpan(_context(trace_id, parent_id, bool(flags & 1), remote=True)))
        decision = self._sampler.should_sample(context if parent_id else None, trace_id, "request").decision
        return decision is Decision.RECORD_AND_SAMPLE

    def _export(self) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        while True:
            closing = self._closing.wait(_PAUSE_SECONDS)
            while batch := [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]:
                spans = [span for row, trace in batch for span in self._spans(row, trace)]
                try:
                    taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
                except Exception:  # whatever it is, requests and later spans go on
                    taken = False
                if taken:
                    self._told = False
                else:
                    self._tell(len(batch))
            if closing:
                return

    def _tell(self, requests: int) -> None:
        self.dropped += requests
        if not self._told:
            self._told = True
            print("note: the OTLP endpoint does not take spans; they are dropped until it does", file=sys.stderr)

    def _spans(self, row: RequestRow, trace: Trace) -> Sequence[ReadableSpan]:
        """The server span and, if the request went to an upstream, the client span."""
        from opentelemetry.trace import SpanKind

        route = self._text(row.route)
        server = _context(trace.trace_id, trace.server_id, True)
        # A client's own mistake is no error of the server (HTTP conventions), but is one of the call to an upstream.
        broken = row.http_status is None or row.http_status >= 500
        spans = [
            self._span(
                f"{_method(row)} {route}",
                kind=SpanKind.SERVER,
                context=server,
                parent=_context(trace.trace_id, trace.parent_id, True, remote=True) if trace.parent_id else None,
                begun=row.time,
                row=row,
                failed=broken,
                attributes=self._server_attributes(row, route),
            )
        ]
        if went_upstream(row):
            operation = _OPERATIONS.get(row.route, "chat")
            spans.append(
                self._span(
                    f"{operation} {self._text(row.model)}".rstrip(),
                    kind=SpanKind.CLIENT,
                    context=_context(trace.trace_id, trace.client_id, True),
                    parent=server,
                    begun=row.time + (row.queue_seconds or 0.0),
                    row=row,
                    failed=broken or row.error_type is not None or _status_error(row, 400) is not None,
                    attributes=self._client_attributes(row, operation),
                )
            )
        return spans

    def _span(self, name: str, *, begun: float, row: RequestRow, failed: bool, **more: Any) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import Status, StatusCode

        return ReadableSpan(
            name,
            resource=self._resource,
            start_time=_nanoseconds(begun),
            end_time=_nanoseconds(max(begun, row.time + (row.total_seconds or 0.0))),
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            instrumentation_scope=InstrumentationScope("inference_service.gateway", __version__),
            **more,
        )

    def _server_attributes(self, row: RequestRow, route: str) -> dict[str, Any]:
        tags = {f"tao.tag.{self._text(name)}": self._text(value) for name, value in row.tags.items()}
        return _known(
            {
                "http.request.method": _method(row),
                "http.route": route,
                "url.path": route,
                "url.scheme": "http",
                "http.response.status_code": row.http_status,
                "http.request.body.size": row.request_bytes,
                "http.response.body.size": row.response_bytes,
                "error.type": self._text(row.error_type) or _status_error(row, 500),
                "tao.request_id": row.request_id,
                "tao.caller": self._text(row.caller),
                "tao.team": self._text(row.team),
                "tao.project": self._text(row.project),
                "tao.queue_seconds": row.queue_seconds,
                "tao.overhead_seconds": row.overhead_seconds,
                "tao.cost_usd": None if row.cost_usd is None else float(row.cost_usd),
                "tao.priced_by": row.priced_by,
                **tags,
            }
        )

    def _client_attributes(self, row: RequestRow, operation: str) -> dict[str, Any]:
        written = (row.cache_write_5m_tokens or 0) + (row.cache_write_1h_tokens or 0) or None
        first = row.first_token_seconds if row.first_token_seconds is not None else row.first_byte_seconds
        return _known(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": self._providers.get(row.network_arch, row.network_arch),
                "gen_ai.request.model": self._text(row.model),
                "gen_ai.request.stream": row.stream,
                "gen_ai.response.time_to_first_chunk": None
                if first is None or not row.stream
                else max(first - (row.queue_seconds or 0.0), 0.0),
                "gen_ai.usage.input_tokens": row.input_tokens,
                "gen_ai.usage.output_tokens": row.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": row.cached_tokens or None,
                # Renamed in 2026; what shows traces knows the one or the other.
                "gen_ai.usage.cache_write.input_tokens": written,
                "gen_ai.usage.cache_creation.input_tokens": written,
                "http.response.status_code": row.http_status,
                "error.type": self._text(row.error_type) or _status_error(row, 400),
                "tao.job_id": row.job_id,
                "tao.platform": row.platform,
                "tao.connect_seconds": row.connect_seconds,
                "tao.usage_estimated": row.usage_estimated or None,
                "tao.retries": row.retries or None,
                "tao.upstream_request_id": self._text(row.upstream_request_id),
            }
        )

    def _text(self, text: str | None) -> str:
        """Half a surrogate pair would cost the whole batch: protobuf holds UTF-8 alone."""
        return self._redact(text.encode(errors="replace").decode()) if text else ""


_64_BITS = (1 << 64) - 1


def went_upstream(row: RequestRow) -> bool:
    """Whether the request was sent on; otherwise we refused it ourselves, or its client left before."""
    error = row.error_type or ""
    return bool(row.network_arch) and (
        row.connect_seconds is not None or row.first_byte_seconds is not None or error.startswith("upstream_")
    )


def _parse(value: bytes) -> tuple[int, int, int] | None:
    """Trace id, span id and flags of a traceparent; None if it is not one."""
    if len(value) > _LONGEST_TRACEPARENT:
        return None
    found = _TRACEPARENT.fullmatch(value)
    # Version 00 has these fields and no others.
    if found is None or (found[4] is not None and value.startswith(b"00")):
        return None
    return int(found[1], 16), int(found[2], 16), int(found[3], 16)


def _context(trace_id: int, span_id: int, sampled: bool, remote: bool = False) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace_id, span_id, remote, TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT))


def _names_service(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("OTEL_SERVICE_NAME")) or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")


def _nanoseconds(seconds: float) -> int:
    # A float of today's seconds holds no more than a quarter of a microsecond.
    return round(seconds * 1e6) * 1000


def _method(row: RequestRow) -> str:
    return "GET" if row.route in ("/v1/models", "/v1/usage") else "POST"


def _status_error(row: RequestRow, lowest: int) -> str | None:
    return str(row.http_status) if row.http_status is not None and row.http_status >= lowest else None


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None and value != ""}

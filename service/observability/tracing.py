"""Request traces with OpenTelemetry, exported by OTLP; imported only if tracing is on, like `span_export`.

Names and attributes follow the semantic conventions for RPC servers, https://opentelemetry.io/docs/specs/semconv/rpc/,
in their stable form.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import ServiceError, StartError
from service.observability.span_export import BoundedSpanProcessor, CountingExporter, SdkLogHandler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.trace import Span, Tracer
    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics

MAX_TRACED_MESSAGES = 128
"""Messages of one stream that have spans; the SDK limits the events of a span to the same number."""

MAX_FLUSH_TIME = 3.0
"""Seconds in which a stop sends the queued spans, within its grace."""

SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The statuses that the conventions count as errors of a server; the others are errors of its client."""

_PROPAGATOR = TraceContextTextMapPropagator()
_FIELDS = _PROPAGATOR.fields


class SpanScope:
    """A span in progress, of a call or of one message of a stream, under which child spans are recorded."""

    def __init__(self, tracer: Tracer | None, span: Span, *, streaming: bool = False) -> None:
        self._tracer = tracer
        self._span = span
        self._streaming = streaming
        self._messages = 0
        self.recorded = span.is_recording()
        self._context = set_span_in_context(span, Context()) if self.recorded else None
        trace_id = span.get_span_context().trace_id
        self.trace_id = format_trace_id(trace_id) if trace_id else ""

    @property
    def recorded_trace_id(self) -> str:
        """The trace id for exemplars, which lead to a trace; empty if the span is not recorded."""
        return self.trace_id if self.recorded else ""

    def set_attributes(self, **attributes: str | int) -> None:
        """Set attributes of our own, with the prefix `digits.`."""
        for name, value in attributes.items():
            self._span.set_attribute(f"digits.{name}", value)

    def record_child(
        self,
        name: str,
        started: int,
        ended: int,
        error: BaseException | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> None:
        """Record a finished child span with the exception that it raised; times are nanoseconds of Unix time."""
        assert self._tracer is not None
        span = self._tracer.start_span(name, self._context, attributes=attributes, start_time=started)
        if error is not None:
            _record_error(span, error)
        span.end(ended)

    @contextmanager
    def message(self) -> Iterator[SpanScope]:
        """Enter the scope of one message: that of the call, or for a stream a span of its own."""
        if not self._streaming:
            yield self
            return
        self._messages += 1
        self.set_attributes(messages=self._messages)
        if self._messages > MAX_TRACED_MESSAGES:
            with _use(NOOP) as scope:
                yield scope
            return
        assert self._tracer is not None
        span = self._tracer.start_span("message", self._context, attributes={"digits.message": self._messages})
        try:
            with _use(SpanScope(self._tracer, span)) as scope:
                yield scope
        except BaseException as error:
            _record_error(span, error)
            raise
        finally:
            span.end()

    def end(self, status: str) -> None:
        """End the span of a call with its gRPC status, such as INVALID_ARGUMENT."""
        self._span.set_attribute("rpc.response.status_code", status)
        if status in SERVER_ERRORS:
            self._span.set_attribute("error.type", status)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


NOOP = SpanScope(None, INVALID_SPAN)
"""The scope of a call that is not traced."""

_current: ContextVar[SpanScope] = ContextVar("scope", default=NOOP)


@contextmanager
def _use(scope: SpanScope) -> Iterator[SpanScope]:
    token = _current.set(scope)
    try:
        yield scope
    finally:
        _current.reset(token)


def _record_error(span: Span, error: BaseException) -> None:
    """Record an exception; only a bug makes the span an error, for other exceptions the span of the call does."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute("error.type", name)
    span.add_event("exception", {"exception.type": name, "exception.message": str(error)})
    if isinstance(error, Exception) and not isinstance(error, ServiceError):
        span.set_status(StatusCode.ERROR)


class Tracing:
    """Sends traces to `endpoint`, an OTLP receiver over gRPC such as http://localhost:4317.

    Records `ratio` of the calls whose client has not decided. The variables that the SDK reads by itself, such as
    OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES, apply; StartError if one of them is invalid.
    """

    def __init__(
        self, endpoint: str, ratio: float, *, version: str, metrics: Metrics, log: FilteringBoundLogger
    ) -> None:
        self._ratio = ratio
        self._log = log
        self._sdk_log = SdkLogHandler(log)
        logging.getLogger("opentelemetry").addHandler(self._sdk_log)
        logging.getLogger("opentelemetry").propagate = False
        try:
            otlp = OTLPSpanExporter(endpoint, channel_options=_channel_options(endpoint))
            self._exporter = CountingExporter(otlp, metrics, self._sdk_log, log)
            self._processor = BoundedSpanProcessor(self._exporter, metrics)
            self._provider = TracerProvider(
                sampler=ParentBased(ALWAYS_ON),  # `start_call` samples calls without a parent by the ratio
                resource=_resource(version),
                shutdown_on_exit=False,
            )
        except Exception as e:  # each variable raises another type
            raise StartError(f"--otlp-endpoint {endpoint}: {e}: check the OTEL_ variables") from e
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("digitserve", version)

    def start_call(self, method: str, metadata: Iterable[tuple[str, Any]], *, streaming: bool) -> SpanScope | None:
        """Start the span of a call of `method`, /package.Service/Method; None if the call is not sampled.

        Run the handler in `use`, and end the span with the status of the call.
        """
        parent = _parent(metadata)
        if parent is None and random.random() >= self._ratio:  # noqa: S311 (no secret)
            return None
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = self._tracer.start_span(name, parent or Context(), SpanKind.SERVER, attributes)
        return SpanScope(self._tracer, span, streaming=streaming)

    current = staticmethod(_current.get)
    """Return the scope of the call or message of this task; NOOP if it is not traced."""

    use = staticmethod(_use)
    """Make a scope the current one within a `with` block."""

    async def close(self, seconds: float) -> None:
        """Send the queued spans within so many seconds, and drop the rest."""
        failed_before = self._exporter.failed
        flushed = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait({flushed}, timeout=min(seconds, MAX_FLUSH_TIME))
        if not flushed.done():
            self._sdk_log.setLevel(logging.CRITICAL)  # or the SDK logs the shutdown once per batch
            self._exporter.shutdown()  # aborts the attempt in progress, and the wait before the next
        await flushed
        logging.getLogger("opentelemetry").removeHandler(self._sdk_log)
        if dropped := self._processor.queued + self._exporter.failed - failed_before:
            self._log.warning("spans dropped", spans=dropped)


def _channel_options(endpoint: str) -> Any:
    """Return the options of the exporter's channel: gRPC by default uses the environment's proxy for loopback too."""
    host = urlsplit(endpoint).hostname or ""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    return (("grpc.enable_http_proxy", 0),) if is_loopback else ()


def _resource(version: str) -> Resource:
    """Return the resource of the spans: this process, unless the standard variables name another."""
    ours = {"service.name": "digitserve", "service.version": version, "service.instance.id": str(uuid.uuid4())}
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def _parent(metadata: Iterable[tuple[str, Any]]) -> Context | None:
    """Return the trace context of the client; None if there is none or it is malformed."""
    carrier: dict[str, list[str]] = {}
    for key, value in metadata:
        if key in _FIELDS:
            carrier.setdefault(key, []).append(str(value))
    return (_PROPAGATOR.extract(carrier, Context()) or None) if carrier else None

"""Traces of requests by OpenTelemetry, sent by OTLP; loaded only where they are asked for, as `span_export` is.

Names and attributes follow the semantic conventions for RPC servers, https://opentelemetry.io/docs/specs/semconv/rpc/,
in their stable form.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import time
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import ServiceError, StartError
from service.observability.span_export import Heard, Line, Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.trace import Span, Tracer
    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics

R = TypeVar("R")

MESSAGES = 128
"""Messages of one stream that get spans; the SDK bounds the events of a span by the same number."""

LONGEST_FLUSH = 3.0
"""Seconds that a stop gives the spans in line, within its grace."""

FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The statuses that make a server's span an error by the conventions; the others are mistakes of its caller."""

_PROPAGATOR = TraceContextTextMapPropagator()
_FIELDS = _PROPAGATOR.fields


class Part:
    """A span in progress and what happens under it: a call, or one message of a stream."""

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
        """For exemplars, which lead to a trace: nothing where none is recorded."""
        return self.trace_id if self.recorded else ""

    def note(self, **attributes: str | int) -> None:
        """Set attributes of our own, `digits.` before their names."""
        for name, value in attributes.items():
            self._span.set_attribute(f"digits.{name}", value)

    def step(
        self,
        name: str,
        began: int,
        ended: int,
        error: BaseException | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> None:
        """Record a step that is over, with what it raised; times are nanoseconds of Unix time."""
        assert self._tracer is not None
        span = self._tracer.start_span(name, self._context, attributes=attributes, start_time=began)
        if error is not None:
            _failed(span, error)
        span.end(ended)

    def timed(self, name: str, work: Callable[[], R]) -> R:
        """What `work` gives, recorded as a step."""
        began, error = time.time_ns(), None
        try:
            return work()
        except Exception as e:
            error = e
            raise
        finally:
            self.step(name, began, time.time_ns(), error)

    @contextmanager
    def message(self) -> Iterator[Part]:
        """What one message's steps belong to: the call, or in a stream a span of the message's own."""
        if not self._streaming:
            yield self
            return
        self._messages += 1
        self.note(messages=self._messages)
        if self._messages > MESSAGES:
            with _within(NOTHING) as part:
                yield part
            return
        assert self._tracer is not None
        span = self._tracer.start_span("message", self._context, attributes={"digits.message": self._messages})
        try:
            with _within(Part(self._tracer, span)) as part:
                yield part
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            span.end()

    def end(self, status: str) -> None:
        """The call is over, with this gRPC status as protocol buffers spell it: INVALID_ARGUMENT."""
        self._span.set_attribute("rpc.response.status_code", status)
        if status in FAULTS:
            self._span.set_attribute("error.type", status)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


NOTHING = Part(None, INVALID_SPAN)
_current: ContextVar[Part] = ContextVar("part", default=NOTHING)


@contextmanager
def _within(part: Part) -> Iterator[Part]:
    token = _current.set(part)
    try:
        yield part
    finally:
        _current.reset(token)


def _failed(span: Span, error: BaseException) -> None:
    """A fault of ours makes an error of the span; a refusal does not, as its call's span tells which those are."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute("error.type", name)
    span.add_event("exception", {"exception.type": name, "exception.message": str(error)})
    if isinstance(error, Exception) and not isinstance(error, ServiceError):
        span.set_status(StatusCode.ERROR)


class Tracing:
    """Traces that go to `endpoint`, an OTLP receiver over gRPC such as http://localhost:4317.

    `ratio` of the calls whose caller has not decided are recorded. Variables that the SDK reads by itself, such as
    OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES, hold; StartError where it cannot use what they say.
    """

    def __init__(
        self, endpoint: str, ratio: float, *, version: str, metrics: Metrics, log: FilteringBoundLogger
    ) -> None:
        self._ratio = ratio
        self._log = log
        self._heard = Heard(log)
        logging.getLogger("opentelemetry").addHandler(self._heard)
        logging.getLogger("opentelemetry").propagate = False
        try:
            self._sender = Sender(
                OTLPSpanExporter(endpoint, channel_options=_channel_options(endpoint)), metrics, self._heard, log
            )
            self._line = Line(self._sender, metrics)
            self._provider = TracerProvider(
                sampler=ParentBased(ALWAYS_ON),  # of those without a parent, `begin` has chosen by the ratio
                resource=_resource(version),
                shutdown_on_exit=False,
            )
        except Exception as e:  # each variable has an error of its own
            raise StartError(f"--otlp-endpoint {endpoint}: {e}: look at the OTEL_ variables") from e
        self._provider.add_span_processor(self._line)
        self._tracer = self._provider.get_tracer("digitserve", version)

    def begin(self, method: str, metadata: Iterable[tuple[str, Any]], *, streaming: bool) -> Part | None:
        """The span of a call of `method`, /package.Service/Method; None where nobody wants to know of it.

        Let the call be answered `within` it; whoever knows its status ends it.
        """
        parent = _parent(metadata)
        if parent is None and random.random() >= self._ratio:  # noqa: S311 (no secret)
            return None
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = self._tracer.start_span(name, parent or Context(), SpanKind.SERVER, attributes)
        return Part(self._tracer, span, streaming=streaming)

    current = staticmethod(_current.get)
    """The call or message that this task answers; NOTHING where that is not traced."""

    within = staticmethod(_within)
    """A context in which a part is the current one."""

    async def close(self, seconds: float) -> None:
        """Send what is in line, within so many seconds; what is left is given up."""
        failed_before = self._sender.failed
        flushed = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait({flushed}, timeout=min(seconds, LONGEST_FLUSH))
        if not flushed.done():
            self._heard.setLevel(logging.CRITICAL)  # or the log would hear of the shutdown once for every batch
            self._sender.shutdown()  # ends the attempt that is under way, and the waiting before the next
        await flushed
        logging.getLogger("opentelemetry").removeHandler(self._heard)
        if lost := self._line.waiting + self._sender.failed - failed_before:
            self._log.warning("spans dropped", spans=lost)


def _channel_options(endpoint: str) -> Any:
    """Those of the exporter's channel: gRPC asks a proxy of the environment for loopback too, unless told not to."""
    host = urlsplit(endpoint).hostname or ""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    return (("grpc.enable_http_proxy", 0),) if is_loopback else ()


def _resource(version: str) -> Resource:
    """What sends the spans: this process, unless the standard variables say otherwise."""
    ours = {"service.name": "digitserve", "service.version": version, "service.instance.id": str(uuid.uuid4())}
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def _parent(metadata: Iterable[tuple[str, Any]]) -> Context | None:
    """What the caller says of its trace; nothing where it says nothing, or nothing that can be read."""
    carrier: dict[str, list[str]] = {}
    for key, value in metadata:
        if key in _FIELDS:
            carrier.setdefault(key, []).append(str(value))
    return (_PROPAGATOR.extract(carrier, Context()) or None) if carrier else None

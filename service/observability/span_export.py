"""Finished spans on their way to a collector: counted, in a bounded line, sent in batches by a thread of the SDK's.

A collector that is slow or gone costs spans, which are counted, and never a request.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics

LINE = 4096
"""Finished spans that may wait to be sent; one more is dropped."""


class Sender(SpanExporter):
    """Another exporter, whose spans are counted; the log hears when it begins to fail, and when it works again."""

    def __init__(self, inner: SpanExporter, metrics: Metrics, heard: Heard, log: FilteringBoundLogger) -> None:
        self._inner = inner
        self._counter = metrics.trace_spans
        self._heard = heard
        self._log = log
        self._failing = False
        self.gone = 0
        """Spans that were sent or given up; written by the thread that sends alone."""
        self.failed = 0
        """Those that were given up."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self.gone += len(spans)
            self._tell(len(spans), failed=result is not SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Give up whatever is under way."""
        self._inner.shutdown()

    def _tell(self, spans: int, *, failed: bool) -> None:
        self._counter.labels("failed" if failed else "sent").inc(spans)
        self.failed += spans if failed else 0
        if failed and not self._failing:
            self._log.warning("trace export failed", reason=self._heard.reason)
        elif self._failing and not failed:
            self._log.info("trace export recovered")
        self._failing = failed


class Line(SpanProcessor):
    """The line of finished spans to the sender. The SDK's own has a bound too, and does not tell what it drops."""

    def __init__(self, sender: Sender, metrics: Metrics) -> None:
        self._sender = sender
        self._dropped = metrics.trace_spans.labels("dropped")
        self._taken = 0  # written by whoever ends spans alone: the event loop
        self._batches = BatchSpanProcessor(sender, max_queue_size=LINE)

    @property
    def waiting(self) -> int:
        """Spans in line."""
        return self._taken - self._sender.gone

    def on_end(self, span: ReadableSpan) -> None:
        """A span is over."""
        if self.waiting >= LINE:
            self._dropped.inc()
            return
        self._taken += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Send all that is in line."""
        self._batches.shutdown()  # type: ignore[no-untyped-call] # the SDK annotates nearly all else


class Heard(logging.Handler):
    """What the SDK says to Python's logging: it goes to our log, or is kept as the reason of a failed attempt."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self.reason = "unknown"

    def emit(self, record: logging.LogRecord) -> None:
        """Hear one record."""
        if record.name.startswith("opentelemetry.exporter"):
            self.reason = record.getMessage()
        elif not record.name.startswith("opentelemetry.sdk._shared_internal"):  # says the same once more
            self._log.warning("tracing", reason=record.getMessage())

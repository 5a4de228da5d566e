"""The export of finished spans: counted, queued up to a limit, sent in batches by a thread of the SDK.

A collector that is slow or unreachable costs spans, which are counted, and delays no request.
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

MAX_QUEUED_SPANS = 4096
"""Finished spans in the queue; one more is dropped."""


class CountingExporter(SpanExporter):
    """Counts the spans that another exporter sends, and logs when it begins to fail and when it recovers."""

    def __init__(
        self, inner: SpanExporter, metrics: Metrics, sdk_log: SdkLogHandler, log: FilteringBoundLogger
    ) -> None:
        self._inner = inner
        self._counter = metrics.trace_spans
        self._sdk_log = sdk_log
        self._log = log
        self._failing = False
        self.finished = 0
        """Spans that were sent or that failed; only the exporter's thread writes it."""
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self.finished += len(spans)
            self._record(len(spans), failed=result is not SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Abort the attempt in progress."""
        self._inner.shutdown()

    def _record(self, spans: int, *, failed: bool) -> None:
        self._counter.labels("failed" if failed else "sent").inc(spans)
        self.failed += spans if failed else 0
        if failed and not self._failing:
            self._log.warning("trace export failed", reason=self._sdk_log.last_export_error)
        elif self._failing and not failed:
            self._log.info("trace export recovered")
        self._failing = failed


class BoundedSpanProcessor(SpanProcessor):
    """The queue of the exporter. The SDK's own queue has a limit too, but does not report the spans that it drops."""

    def __init__(self, exporter: CountingExporter, metrics: Metrics) -> None:
        self._exporter = exporter
        self._dropped = metrics.trace_spans.labels("dropped")
        self._enqueued = 0  # written only by the event loop, which ends every span
        self._batches = BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED_SPANS)

    @property
    def queued(self) -> int:
        """The number of spans in the queue."""
        return self._enqueued - self._exporter.finished

    def on_end(self, span: ReadableSpan) -> None:
        """Enqueue a finished span, or drop it."""
        if self.queued >= MAX_QUEUED_SPANS:
            self._dropped.inc()
            return
        self._enqueued += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Send the queued spans."""
        self._batches.shutdown()  # type: ignore[no-untyped-call] # the SDK annotates nearly all else


class SdkLogHandler(logging.Handler):
    """Writes warnings of the SDK to our log, and keeps the latest error of its exporter."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self.last_export_error = "unknown"

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record."""
        if record.name.startswith("opentelemetry.exporter"):
            self.last_export_error = record.getMessage()
        elif not record.name.startswith("opentelemetry.sdk._shared_internal"):  # repeats the exporter's error
            self._log.warning("tracing SDK warning", reason=record.getMessage())

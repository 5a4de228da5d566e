"""The Prometheus instruments of a process, on a registry that is passed in.

Values that every request changes are plain numbers with one writer, the event loop or the current run of the model. A
scrape converts them to series; `service.observability.histogram` has the reason.
"""

from __future__ import annotations

import itertools
import platform
import socket
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from service import __version__
from service.network import HIGHEST_SECOND, LOWEST_TOP, is_unsure
from service.observability.histogram import Histogram
from service.observability.logs import LossyStderr
from service.observability.rpc_metrics import LATENCY_BUCKETS, collect_rpcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt
    from prometheus_client.core import Metric

    from service.network import ModelInfo
    from service.observability.rpc_metrics import RpcMetrics


INFERENCE_BUCKETS = (10e-6, 25e-6, *LATENCY_BUCKETS)
BATCH_BUCKETS = tuple(float(2**i) for i in range(13))
CONFIDENCE_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)

NATIVE_SERIES = frozenset(
    {"digits_connections_ended_total", "digits_connections_rejected_total", "digits_io_thread_connections"}
)
"""The series that only the native transport has: grpcio does not report these events."""

GRPCIO_SERIES = frozenset({"digits_calls_ended_total", "digits_trace_spans_total", "digits_transport_restarts_total"})
"""The series that only the grpcio transport changes."""


class Metrics(Collector):
    """Every instrument of a process; one per registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.rpcs: list[RpcMetrics] = []
        self.inference = Histogram(INFERENCE_BUCKETS)
        self.queue = Histogram(LATENCY_BUCKETS)
        self.batch_size = Histogram(BATCH_BUCKETS)
        self.confidence = Histogram(CONFIDENCE_BUCKETS)
        self.unsure = 0
        self.by_digit = [0] * 10
        self.connections_rejected: dict[str, int] | None = None
        """By reason; None with a transport that does not report it (see `NATIVE_SERIES`)."""
        self.connections_ended: dict[str, int] | None = None
        """Likewise."""
        self.io_thread_connections: list[int] | None = None
        """By I/O thread; likewise."""
        self.before_collect: Callable[[], None] | None = None
        """Called before a scrape; the native transport copies its own numbers here."""
        registry.register(self)
        self._make_request_counters(registry)
        self._make_operation_counters(registry)
        self._make_reload_gauges(registry)
        self._make_gauges(registry)

    def _make_request_counters(self, registry: CollectorRegistry) -> None:
        self.requests_dropped = _counter(
            registry,
            "digits_requests_dropped_total",
            "Requests dropped before their run of the model, by reason.",
            reason=("cancelled", "deadline", "overloaded", "unauthenticated"),
        )
        self.calls_ended = _counter(
            registry,
            "digits_calls_ended_total",
            "Calls of the grpcio transport ended because their client did not read the reply, by reason.",
            reason=("memory", "unread"),
        )
        self.trace_spans = _counter(
            registry,
            "digits_trace_spans_total",
            "Trace spans, by result: sent, failed to send, or dropped because the queue of the exporter was full.",
            result=("sent", "failed", "dropped"),
        )

    def _make_operation_counters(self, registry: CollectorRegistry) -> None:
        self.model_reloads = _counter(
            registry,
            "digits_model_reloads_total",
            "Reloads of the model, by result.",
            result=("loaded", "rejected"),
        )
        self.model_folders_ignored = Gauge(
            "digits_model_folders_ignored",
            "Folders of the model repository that are not a version that can serve.",
            registry=registry,
        )
        self.device_failures = _counter(
            registry,
            "digits_device_failures_total",
            "Failed runs on the device, for lack of memory or otherwise, and failed recreations of its session.",
            reason=("memory", "run", "session"),
        )
        self.stalls = Counter(
            "digits_stalls_total",
            "Stalls that the watchdog detected: a hung run of the model, a blocked event loop or a dead thread.",
            registry=registry,
        )
        self.transport_restarts = Counter(
            "digits_transport_restarts_total",
            "Replacements of the gRPC server of the grpcio transport after it crashed.",
            registry=registry,
        )
        self.credential_rotations = _counter(
            registry,
            "digits_credentials_rotations_total",
            "Changes of certificates or tokens, by result.",
            kind=("tls", "tokens"),
            result=("loaded", "rejected"),
        )

    def _make_reload_gauges(self, registry: CollectorRegistry) -> None:
        self.last_reload_successful = Gauge(
            "digits_last_reload_successful",
            "1 if the last change of that kind was loaded, 0 if it was rejected.",
            ["kind"],
            registry=registry,
        )
        for kind in ("model", "tls", "tokens"):
            self.last_reload_successful.labels(kind).set(1)

    def _make_gauges(self, registry: CollectorRegistry) -> None:
        self.queue_images = Gauge("digits_queue_images", "Images in the queue.", registry=registry)
        self.queue_capacity = Gauge(
            "digits_queue_capacity_images", "Capacity of the queue in images; more are rejected.", registry=registry
        )
        self.connections = Gauge("digits_connections", "Open connections of the gRPC port.", registry=registry)
        self.connections_limit = Gauge(
            "digits_connections_limit",
            "Maximum number of open connections; one more is closed at once.",
            registry=registry,
        )
        self.tls_expiry = Gauge(
            "digits_tls_expiry_timestamp_seconds",
            "Unix time when the server's certificate expires; 0 without TLS.",
            registry=registry,
        )
        self.last_success = Gauge(
            "digits_last_success_timestamp_seconds",
            "Unix time of the last successful run of the model; 0 before the first.",
            registry=registry,
        )
        self.serving = Gauge("digits_serving", "1 while health is SERVING, 0 otherwise.", registry=registry)
        self.model_info = Info("digits_model", "The model that serves.", registry=registry)
        self.server_info = Info("digits_server", "Versions of the server and of its libraries.", registry=registry)

    def record_run(self, digits: npt.NDArray[np.int64], activations: npt.NDArray[np.float32], seconds: float) -> None:
        """Count one run of the model, from its digits, shape (n,), and activations, (n, 10)."""
        self.inference.observe(seconds)
        self.batch_size.observe(len(digits))
        if len(digits) == 1:
            digit = digits.item()
            self.by_digit[digit] += 1
            self.confidence.observe(activations.item(digit))
            *_, second, top = sorted(activations[0].tolist())
            self.unsure += is_unsure(top, second)
            return
        for digit, count in enumerate(np.bincount(digits, minlength=10).tolist()):
            self.by_digit[digit] += count
        self.confidence.observe_all(activations[np.arange(len(digits)), digits])
        second, top = np.partition(activations, (-2, -1), axis=1)[:, -2:].T
        self.unsure += int(is_unsure(top, second).sum())

    def record_reload(self, kind: str, result: str) -> None:
        """Count a change of the "model", the "tls" files or the "tokens" that was "loaded" or "rejected"."""
        if kind == "model":
            self.model_reloads.labels(result).inc()
        else:
            self.credential_rotations.labels(kind, result).inc()
        self.last_reload_successful.labels(kind).set(result == "loaded")

    def set_model_info(self, info: ModelInfo, *, provider: str, runtime: str, transport: str) -> None:
        """Set the labels of `digits_model_info` and `digits_server_info`."""
        self.model_info.info(
            {
                "name": info.name,
                "version": info.version,
                "activation": info.activation,
                "accuracy": info.accuracy,
                "weights_sha256": info.weights_sha256,
                "content_sha256": info.content_sha256,
                "provider": provider,
                "transport": transport,
            }
        )
        self.server_info.info(
            {
                "version": __version__,
                "host": socket.gethostname(),
                "python": platform.python_version(),
                "onnxruntime": runtime,
                "grpcio": version("grpcio"),
            }
        )

    def collect(self) -> Iterable[Metric]:
        """Return the current values of the plain numbers."""
        if self.before_collect is not None:
            self.before_collect()
        yield from collect_rpcs(self.rpcs)
        for name, help_, histogram in (
            ("digits_inference_seconds", "Seconds of one run of the model.", self.inference),
            ("digits_queue_seconds", "Seconds of a request in the queue; 0 if the model was idle.", self.queue),
            ("digits_batch_size", "Images in one run of the model.", self.batch_size),
            ("digits_confidence", "Winning activation of each image, 0 to 1.", self.confidence),
        ):
            family = HistogramMetricFamily(name, help_)
            histogram.add_to(family)
            yield family
        predictions = CounterMetricFamily("digits_predictions", "Images, by predicted digit.", labels=["digit"])
        for digit, count in enumerate(self.by_digit):
            predictions.add_metric([str(digit)], count)
        yield predictions
        yield CounterMetricFamily(
            "digits_unsure",
            f"Images answered with a highest activation below {LOWEST_TOP} or a second above {HIGHEST_SECOND}.",
            value=self.unsure,
        )
        yield CounterMetricFamily(
            "digits_log_lines_dropped",
            "Log lines that could not be written, for example to a full disk.",
            value=LossyStderr.dropped,
        )
        yield from self._connection_series()

    def describe(self) -> Iterable[Metric]:
        """Return the families, by whose names the registry knows this collector."""
        return self.collect()

    def _connection_series(self) -> Iterable[Metric]:
        for name, help_, counts in (
            (
                "digits_connections_rejected",
                "Connections closed before their first call, by reason.",
                self.connections_rejected,
            ),
            (
                "digits_connections_ended",
                "Connections ended for the memory that they made the server hold, by reason.",
                self.connections_ended,
            ),
        ):
            if counts is not None:
                family = CounterMetricFamily(name, help_, labels=["reason"])
                for reason, count in counts.items():
                    family.add_metric([reason], count)
                yield family
        if self.io_thread_connections is not None:
            help_ = "Open connections of each I/O thread of the native transport."
            gauge = GaugeMetricFamily("digits_io_thread_connections", help_, labels=["io_thread"])
            for io_thread, count in enumerate(self.io_thread_connections):
                gauge.add_metric([str(io_thread)], count)
            yield gauge


def create_registry() -> CollectorRegistry:
    """Create a registry without `_created` series: no dashboard here reads that second series of each counter."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    return CollectorRegistry()


def _counter(registry: CollectorRegistry, name: str, help_: str, **labels: tuple[str, ...]) -> Counter:
    """Make a counter whose series all begin at 0: if one begins with its first event, its rate misses that event."""
    counter = Counter(name, help_, [*labels], registry=registry)
    for values in itertools.product(*labels.values()):
        counter.labels(*values)
    return counter

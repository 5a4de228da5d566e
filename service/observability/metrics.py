"""The Prometheus instruments, built on a registry that is passed in.

The `grpc_server_*` names and labels are those of go-grpc-middleware, so that dashboards made for it fit; its buckets
begin at 5 ms, where nearly every answer here is already out, so lower ones are added.

What every request touches is a plain number with one writer (the event loop, or the model's one run at a time) and
becomes series when somebody scrapes: see `service.observability.histogram` for why.
"""

from __future__ import annotations

import itertools
import platform
import socket
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from service import __version__
from service.observability.histogram import Histogram, exemplar
from service.observability.logs import LossyStderr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt
    from prometheus_client.core import Metric
    from prometheus_client.samples import Exemplar

    from service.network import ModelInfo


LATENCY_BUCKETS = (
    *(50e-6, 100e-6, 200e-6, 300e-6, 500e-6, 750e-6, 0.001, 0.0015, 0.0025),
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
INFERENCE_BUCKETS = (10e-6, 25e-6, *LATENCY_BUCKETS)
BATCH_BUCKETS = tuple(float(2**i) for i in range(13))
CONFIDENCE_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)

CODES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
    *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
"""Every gRPC status code, in the order of its number, spelled as in Go."""

NATIVE_SERIES = frozenset({"digits_connections_ended_total", "digits_connections_rejected_total"})
"""The series that only the native transport makes: grpcio does not report what they count."""

WATCHED = frozenset({"Predict", "PredictStream", "ModelInfer", "ModelStreamInfer"})
"""The RPCs whose series all exist from the start: a rate over a first error is lost where the series begins with it.

Another RPC shows only that it was never called until it is, for most are never called, and a scrape takes the
interpreter from the requests for as long as it writes lines.
"""


class Rpc(NamedTuple):
    """The labels of one RPC, as go-grpc-middleware spells them."""

    grpc_type: str
    grpc_service: str
    grpc_method: str


class Metrics(Collector):
    """Every instrument of the process; one set a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.rpcs: list[RpcMetrics] = []
        self.inference = Histogram(INFERENCE_BUCKETS)
        self.queue = Histogram(LATENCY_BUCKETS)
        self.batch_size = Histogram(BATCH_BUCKETS)
        self.confidence = Histogram(CONFIDENCE_BUCKETS)
        self.by_digit = [0] * 10
        self.connections_rejected: dict[str, int] | None = None
        """By reason; None with a transport that does not report it: see `NATIVE_SERIES`."""
        self.connections_ended: dict[str, int] | None = None
        """Likewise."""
        self.before_collect: Callable[[], None] | None = None
        """Where counts are kept elsewhere: brings the numbers here up to date for a scrape."""
        registry.register(self)
        self._make_counters(registry)
        self._make_gauges(registry)

    def _make_counters(self, registry: CollectorRegistry) -> None:
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
        self.model_reloads = _counter(
            registry,
            "digits_model_reloads_total",
            "Other versions or files of the model that were taken up or refused.",
            result=("loaded", "rejected"),
        )
        self.model_folders_ignored = Gauge(
            "digits_model_folders_ignored", "Folders beside the versions that cannot serve.", registry=registry
        )
        self.device_failures = _counter(
            registry,
            "digits_device_failures_total",
            "Runs that failed on the device, for want of memory or otherwise, and new sessions that could not be made.",
            reason=("memory", "run", "session"),
        )
        self.stalls = Counter(
            "digits_stalls_total",
            "Times that a run of the model did not come back, the event loop stood still, or a thread ended.",
            registry=registry,
        )
        self.transport_restarts = Counter(
            "digits_transport_restarts_total",
            "Times that the gRPC server of the grpcio transport ended by itself and was replaced.",
            registry=registry,
        )
        self.credential_rotations = _counter(
            registry,
            "digits_credentials_rotations_total",
            "Changed certificates or tokens that were taken up or refused.",
            kind=("tls", "tokens"),
            result=("loaded", "rejected"),
        )
        self.last_reload_successful = Gauge(
            "digits_last_reload_successful",
            "1 where the last change of that kind was taken up, 0 where it was refused.",
            ["kind"],
            registry=registry,
        )
        for kind in ("model", "tls", "tokens"):
            self.last_reload_successful.labels(kind).set(1)
        self.trace_spans = _counter(
            registry,
            "digits_trace_spans_total",
            "Spans of traces that were sent, that failed to be, or for which the line to the collector had no room.",
            result=("sent", "failed", "dropped"),
        )

    def _make_gauges(self, registry: CollectorRegistry) -> None:
        self.queue_images = Gauge("digits_queue_images", "Images that wait for the model.", registry=registry)
        self.queue_capacity = Gauge(
            "digits_queue_capacity_images", "Images that may wait before calls are refused.", registry=registry
        )
        self.connections = Gauge("digits_connections", "Connections open on the gRPC port.", registry=registry)
        self.connections_limit = Gauge(
            "digits_connections_limit", "Connections that may be open; one more is closed at once.", registry=registry
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
        self.serving = Gauge("digits_serving", "1 while health says SERVING, 0 otherwise.", registry=registry)
        self.model_info = Info("digits_model", "The model that serves.", registry=registry)
        self.server_info = Info("digits_server", "The program that serves, and what it runs on.", registry=registry)

    def record_run(self, digits: npt.NDArray[np.int64], activations: npt.NDArray[np.float32], seconds: float) -> None:
        """Count one run of the model that answered these digits, shape (n,), with these activations, (n, 10)."""
        self.inference.observe(seconds)
        self.batch_size.observe(len(digits))
        if len(digits) == 1:
            digit = digits.item()
            self.by_digit[digit] += 1
            self.confidence.observe(activations.item(digit))
            return
        for digit, count in enumerate(np.bincount(digits, minlength=10).tolist()):
            self.by_digit[digit] += count
        self.confidence.observe_all(activations[np.arange(len(digits)), digits])

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
        """What the plain numbers are now."""
        if self.before_collect is not None:
            self.before_collect()
        yield from self._rpc_series()
        for name, help_, distribution in (
            ("digits_inference_seconds", "Seconds of one run of the model.", self.inference),
            ("digits_queue_seconds", "Seconds a request waited for the model; 0 where it was idle.", self.queue),
            ("digits_batch_size", "Images in one run of the model.", self.batch_size),
            ("digits_confidence", "Winning activation of each image answered, 0 to 1.", self.confidence),
        ):
            histogram = HistogramMetricFamily(name, help_)
            distribution.add_to(histogram)
            yield histogram
        predictions = CounterMetricFamily("digits_predictions", "Images answered, by digit read.", labels=["digit"])
        for digit, count in enumerate(self.by_digit):
            predictions.add_metric([str(digit)], count)
        yield predictions
        yield CounterMetricFamily(
            "digits_log_lines_dropped",
            "Log lines that could not be written, as on a full disk.",
            value=LossyStderr.dropped,
        )
        yield from self._connection_series()

    def describe(self) -> Iterable[Metric]:
        """What the registry knows this collector by: its names."""
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
                "Connections ended because of what they had the server hold, by reason.",
                self.connections_ended,
            ),
        ):
            if counts is not None:
                family = CounterMetricFamily(name, help_, labels=["reason"])
                for reason, count in counts.items():
                    family.add_metric([reason], count)
                yield family

    def _rpc_series(self) -> Iterable[Metric]:
        rpc = Rpc._fields
        started = CounterMetricFamily("grpc_server_started", "RPCs started on the server.", labels=rpc)
        received = CounterMetricFamily("grpc_server_msg_received", "Messages received from callers.", labels=rpc)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent to callers.", labels=rpc)
        handled = CounterMetricFamily(
            "grpc_server_handled", "RPCs completed, by status code.", labels=(*rpc, "grpc_code")
        )
        handling = HistogramMetricFamily(
            "grpc_server_handling_seconds", "Seconds from the server's first sight of an RPC to its status.", labels=rpc
        )
        in_flight = GaugeMetricFamily("digits_requests_in_flight", "RPCs started and not completed.", labels=rpc)
        for one in self.rpcs:
            completed = one.handling.count()  # read before those started, so that the difference is never negative
            started.add_metric(one.rpc, one.started)
            if one.started or one.rpc.grpc_method in WATCHED:
                in_flight.add_metric(one.rpc, one.started - completed)
                received.add_metric(one.rpc, one.messages_received)
                sent.add_metric(one.rpc, one.messages_sent)
                for code in CODES:
                    handled.add_metric((*one.rpc, code), one.handled[code], exemplar=one.exemplars.get(code))
                one.handling.add_to(handling, one.rpc)
        return started, received, sent, handled, handling, in_flight


def _counter(registry: CollectorRegistry, name: str, help_: str, **labels: tuple[str, ...]) -> Counter:
    """A counter with every series from the start, at 0: where one begins with a first event, its rate is lost."""
    counter = Counter(name, help_, [*labels], registry=registry)
    for values in itertools.product(*labels.values()):
        counter.labels(*values)
    return counter


class RpcMetrics:
    """The `grpc_server_*` series of one RPC; it is written to from the event loop alone."""

    def __init__(self, metrics: Metrics, rpc: Rpc) -> None:
        self.rpc = rpc
        self.method = f"/{rpc.grpc_service}/{rpc.grpc_method}"
        self.started = self.messages_received = self.messages_sent = 0
        self.handled = dict.fromkeys(CODES, 0)
        self.exemplars: dict[str, Exemplar] = {}
        self.handling = Histogram(LATENCY_BUCKETS)
        metrics.rpcs.append(self)

    def start(self) -> float:
        """Count the call's beginning; give what this returns to `finish`."""
        self.started += 1
        return time.perf_counter()

    def received(self) -> None:
        """Count a message from the caller."""
        self.messages_received += 1

    def sent(self) -> None:
        """Count a message to the caller."""
        self.messages_sent += 1

    def finish(self, started: float, code: str, request_id: str, trace_id: str = "") -> None:
        """Count the call's end with its status code, spelled as in Go: OK, InvalidArgument.

        Ids that are not empty become an exemplar, by which a slow or failed call is found in the log or as a trace.
        """
        self.handling.observe(time.perf_counter() - started, request_id, trace_id)
        self.handled[code] += 1
        if (request_id or trace_id) and (found := exemplar(request_id, 1.0, trace_id)):
            self.exemplars[code] = found

"""The Prometheus instruments, built on a registry that is passed in.

The `grpc_server_*` names and labels are those of go-grpc-middleware, so that dashboards made for it fit; its buckets
begin at 5 ms, where nearly every answer here is already out, so lower ones are added.
"""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, Info, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

LATENCY_BUCKETS = (
    *(50e-6, 100e-6, 200e-6, 300e-6, 500e-6, 750e-6, 0.001, 0.0015, 0.0025),
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
INFERENCE_BUCKETS = (10e-6, 25e-6, *LATENCY_BUCKETS)
BATCH_BUCKETS = tuple(float(2**i) for i in range(13))
CONFIDENCE_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)

LONGEST_IN_EXEMPLAR = 128 - len("request_id")
"""Characters of a request id: OpenMetrics allows an exemplar 128 of names and values together."""


class Rpc(NamedTuple):
    """The labels of one RPC, as go-grpc-middleware spells them."""

    grpc_type: str
    grpc_service: str
    grpc_method: str


class Metrics:
    """Every instrument of the process; one set a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        rpc = Rpc._fields
        self.started = Counter("grpc_server_started_total", "RPCs begun on the server.", rpc, registry=registry)
        self.received = Counter(
            "grpc_server_msg_received_total", "Messages received from callers.", rpc, registry=registry
        )
        self.sent = Counter("grpc_server_msg_sent_total", "Messages sent to callers.", rpc, registry=registry)
        self.handled = Counter(
            "grpc_server_handled_total", "RPCs completed, by status code.", (*rpc, "grpc_code"), registry=registry
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from the server's first sight of an RPC to its status.",
            rpc,
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("digits_requests_in_flight", "RPCs begun and not completed.", rpc, registry=registry)
        self.inference = Histogram(
            "digits_inference_seconds", "Seconds of one run of the model.", buckets=INFERENCE_BUCKETS, registry=registry
        )
        self.queue = Histogram(
            "digits_queue_seconds",
            "Seconds a request waited for the model; 0 where it was idle.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "digits_batch_size", "Images in one run of the model.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.waiting = Gauge("digits_images_waiting", "Images that wait for the model.", registry=registry)
        self.waiting_limit = Gauge(
            "digits_images_waiting_limit", "Images that may wait before calls are refused.", registry=registry
        )
        self.dropped = Counter(
            "digits_dropped_total", "Requests left out before the model ran, by reason.", ["reason"], registry=registry
        )
        self.predictions = Counter(
            "digits_predictions", "Images answered, by digit read.", ["digit"], registry=registry
        )
        self._by_digit = [self.predictions.labels(str(digit)) for digit in range(10)]
        self.confidence = Confidence(registry)
        self.last_success = Gauge(
            "digits_last_success_timestamp_seconds",
            "Unix time of the last successful run of the model; 0 before the first.",
            registry=registry,
        )
        self.serving = Gauge("digits_serving", "1 while health says SERVING, 0 otherwise.", registry=registry)
        self.model_info = Info("digits_model", "The model that serves.", registry=registry)
        self.server_info = Info("digits_server", "The program that serves, and what it runs on.", registry=registry)
        for reason in ("cancelled", "deadline", "overloaded"):
            self.dropped.labels(reason)

    def ran(self, digits: npt.NDArray[np.int64], activations: npt.NDArray[np.float32], seconds: float) -> None:
        """Count one run of the model that answered these digits, shape (n,), with these activations, (n, 10)."""
        self.inference.observe(seconds)
        self.batch_size.observe(len(digits))
        self.confidence.observe(activations)
        if len(digits) == 1:
            self._by_digit[digits[0]].inc()
            return
        for counter, count in zip(self._by_digit, np.bincount(digits, minlength=10), strict=True):
            if count:
                counter.inc(int(count))

    def serves(self, model: Mapping[str, str], server: Mapping[str, str]) -> None:
        """Say what serves from now on, as labels of `digits_model_info` and `digits_server_info`."""
        self.model_info.info(dict(model))
        self.server_info.info(dict(server))


class Confidence(Collector):
    """The histogram `digits_confidence`: the winning activation of each image answered, 0 to 1.

    It takes a batch at once. The library's own takes one value a call, which for a large batch would cost more than
    the run of the model. The model runs once at a time, so that there is one writer and no lock.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts = [0] * (len(CONFIDENCE_BUCKETS) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, activations: npt.NDArray[np.float32]) -> None:
        """Count the images with these activations, shape (n, 10)."""
        if len(activations) == 1:
            confidence = float(activations.max())
            self._counts[bisect_left(CONFIDENCE_BUCKETS, confidence)] += 1
            self._sum += confidence
            return
        confidences = activations.max(axis=1)
        buckets = np.searchsorted(CONFIDENCE_BUCKETS, confidences)
        for bucket, count in enumerate(np.bincount(buckets, minlength=len(self._counts)).tolist()):
            self._counts[bucket] += count
        self._sum += float(confidences.sum(dtype=np.float64))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The histogram as it stands."""
        edges = [*map(floatToGoString, CONFIDENCE_BUCKETS), "+Inf"]
        yield HistogramMetricFamily(
            "digits_confidence",
            "Winning activation of each image answered.",
            buckets=list(zip(edges, itertools.accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """What the registry knows this collector by: the name."""
        return self.collect()


class RpcMetrics:
    """The `grpc_server_*` series of one RPC, looked up once: its callers pay for no label look-up."""

    def __init__(self, metrics: Metrics, rpc: Rpc) -> None:
        self.method = f"/{rpc.grpc_service}/{rpc.grpc_method}"
        self._started = metrics.started.labels(*rpc)
        self._received = metrics.received.labels(*rpc)
        self._sent = metrics.sent.labels(*rpc)
        self._handling = metrics.handling.labels(*rpc)
        self._in_flight = metrics.in_flight.labels(*rpc)
        # Series that exist from the start: a rate over a first error is lost where the series begins with it.
        self._handled = {code: metrics.handled.labels(*rpc, code) for code in _CODES}

    def start(self) -> float:
        """Count a call begun; returns the clock to hand to `finish`."""
        self._started.inc()
        self._in_flight.inc()
        return time.perf_counter()

    def received(self) -> None:
        """Count a message from the caller."""
        self._received.inc()

    def sent(self) -> None:
        """Count a message to the caller."""
        self._sent.inc()

    def finish(self, started: float, code: str, request_id: str) -> None:
        """Count the call's end with its status code, spelled as in Go: OK, InvalidArgument.

        A request id that is not empty becomes an exemplar, by which a slow or failed call is found in the log.
        """
        exemplar = {"request_id": request_id} if 0 < len(request_id) <= LONGEST_IN_EXEMPLAR else None
        self._handling.observe(time.perf_counter() - started, exemplar)
        self._handled[code].inc(exemplar=exemplar)
        self._in_flight.dec()


_CODES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
    *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
"""Every gRPC status code, in the order of its number."""

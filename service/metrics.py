"""The Prometheus instruments, built on a registry that is passed in.

The `grpc_server_*` names and labels are those of go-grpc-middleware, so that dashboards made for it fit; its buckets
begin at 5 ms, where nearly every answer here is already out, so lower ones are added.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, Info, ProcessCollector

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

LATENCY_BUCKETS = (
    *(50e-6, 100e-6, 200e-6, 300e-6, 500e-6, 750e-6, 0.001, 0.0015, 0.0025),
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
INFERENCE_BUCKETS = (10e-6, 25e-6, *LATENCY_BUCKETS)
BATCH_BUCKETS = tuple(float(2**i) for i in range(13))


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
        self.dropped = Counter(
            "digits_dropped_total", "Requests left out before the model ran, by reason.", ["reason"], registry=registry
        )
        self.predictions = Counter(
            "digits_predictions", "Images answered, by digit read.", ["digit"], registry=registry
        )
        self._by_digit = [self.predictions.labels(str(digit)) for digit in range(10)]
        self.model_info = Info("digits_model", "The model that serves.", registry=registry)
        for reason in ("cancelled", "deadline", "overloaded"):
            self.dropped.labels(reason)

    def ran(self, digits: npt.NDArray[np.int64], seconds: float) -> None:
        """Count one run of the model that answered these digits, shape (n,)."""
        self.inference.observe(seconds)
        self.batch_size.observe(len(digits))
        if len(digits) == 1:
            self._by_digit[digits[0]].inc()
            return
        for counter, count in zip(self._by_digit, np.bincount(digits, minlength=10), strict=True):
            if count:
                counter.inc(int(count))

    def serves(self, info: Mapping[str, str]) -> None:
        """Say which model serves from now on, as labels of `digits_model_info`."""
        self.model_info.info(dict(info))


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

    def finish(self, started: float, code: str) -> None:
        """Count the call's end with its status code, spelled as in Go: OK, InvalidArgument."""
        self._handling.observe(time.perf_counter() - started)
        self._handled[code].inc()
        self._in_flight.dec()


_CODES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
    *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
"""Every gRPC status code, in the order of its number."""

"""The `grpc_server_*` metrics of each RPC, with the names and labels of go-grpc-middleware, so that its dashboards fit.

Its buckets begin at 5 ms; nearly every answer here takes less, so lower buckets are added.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from service.observability.histogram import Histogram, exemplar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric
    from prometheus_client.samples import Exemplar

    from service.observability.metrics import Metrics

LATENCY_BUCKETS = (
    *(50e-6, 100e-6, 200e-6, 300e-6, 500e-6, 750e-6, 0.001, 0.0015, 0.0025),
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds."""

CODES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
    *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
"""Every gRPC status code in the order of its number, with its name in Go."""

PREINITIALIZED_RPCS = frozenset({"Predict", "PredictStream", "ModelInfer", "ModelStreamInfer"})
"""The RPCs whose series exist from the start: if a series begins with the first error, its rate misses that error.

Another RPC has only `grpc_server_started_total` until its first call. Most RPCs are never called, and each line of a
scrape takes time of the interpreter from requests.
"""


class Rpc(NamedTuple):
    """The labels of an RPC."""

    grpc_type: str
    grpc_service: str
    grpc_method: str


class RpcMetrics:
    """The series of one RPC; only the event loop writes to them."""

    def __init__(self, metrics: Metrics, rpc: Rpc) -> None:
        self.rpc = rpc
        self.method = f"/{rpc.grpc_service}/{rpc.grpc_method}"
        self.started = self.messages_received = self.messages_sent = 0
        self.handled = dict.fromkeys(CODES, 0)
        self.exemplars: dict[str, Exemplar] = {}
        self.handling = Histogram(LATENCY_BUCKETS)
        metrics.rpcs.append(self)

    def start(self) -> float:
        """Count the start of a call; pass the returned time to `finish`."""
        self.started += 1
        return time.perf_counter()

    def received(self) -> None:
        """Count a message of the client."""
        self.messages_received += 1

    def sent(self) -> None:
        """Count a message to the client."""
        self.messages_sent += 1

    def finish(self, started: float, code: str, request_id: str, trace_id: str = "") -> None:
        """Count the end of a call with the Go name of its status code.

        Ids that are not empty become an exemplar, which leads from a slow or failed call to the log or the trace.
        """
        self.handling.observe(time.perf_counter() - started, request_id, trace_id)
        self.handled[code] += 1
        if (request_id or trace_id) and (link := exemplar(request_id, 1.0, trace_id)):
            self.exemplars[code] = link


def collect_rpcs(rpcs: Iterable[RpcMetrics]) -> Iterable[Metric]:
    """Return the metric families of these RPCs."""
    labels = Rpc._fields
    started = CounterMetricFamily("grpc_server_started", "RPCs started on the server.", labels=labels)
    received = CounterMetricFamily("grpc_server_msg_received", "Messages received from clients.", labels=labels)
    sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent to clients.", labels=labels)
    handled = CounterMetricFamily(
        "grpc_server_handled", "RPCs completed, by status code.", labels=(*labels, "grpc_code")
    )
    handling = HistogramMetricFamily(
        "grpc_server_handling_seconds", "Seconds from the headers of an RPC to its status.", labels=labels
    )
    in_flight = GaugeMetricFamily("digits_requests_in_flight", "RPCs started and not completed.", labels=labels)
    for one in rpcs:
        completed = one.handling.count()  # read before `started`, so that the difference is never negative
        started.add_metric(one.rpc, one.started)
        if one.started or one.rpc.grpc_method in PREINITIALIZED_RPCS:
            in_flight.add_metric(one.rpc, one.started - completed)
            received.add_metric(one.rpc, one.messages_received)
            sent.add_metric(one.rpc, one.messages_sent)
            for code in CODES:
                handled.add_metric((*one.rpc, code), one.handled[code], exemplar=one.exemplars.get(code))
            one.handling.add_to(handling, one.rpc)
    return started, received, sent, handled, handling, in_flight

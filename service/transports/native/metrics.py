"""Copies the native transport's metrics into the instruments and the statistics of Python."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from prometheus_client.samples import Exemplar

from service.observability.rpc_metrics import CODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.observability.histogram import Histogram
    from service.observability.metrics import Metrics
    from service.observability.rpc_metrics import RpcMetrics
    from service.observability.statistics import Statistics

_SECONDS = 1e-9  # Rust counts nanoseconds


class NativeMetricsBridge:
    """Copies the metrics of a `digitserve_native.Server` whose routes are `rpcs`. Call `update` before each scrape."""

    def __init__(self, server: Any, metrics: Metrics, rpcs: Sequence[RpcMetrics]) -> None:
        self._server = server
        self._metrics = metrics
        self._rpcs = rpcs
        self._dropped = dict.fromkeys(("cancelled", "deadline", "overloaded", "unauthenticated"), 0)
        metrics.connections_rejected = server.rejected_connections()
        metrics.connections_ended = server.closed_connections()
        metrics.io_thread_connections = server.connections()
        self._lock = Lock()  # two scrapes can run concurrently

    def update(self) -> None:
        """Update the instruments."""
        with self._lock:
            for rpc, counts in zip(self._rpcs, self._server.rpc_metrics(), strict=True):
                _update_rpc(rpc, counts)
            self._update_model(self._server.model_metrics())
            self._metrics.connections_rejected = self._server.rejected_connections()
            self._metrics.connections_ended = self._server.closed_connections()
            self._metrics.io_thread_connections = self._server.connections()

    def _update_model(self, counts: dict[str, Any]) -> None:
        metrics = self._metrics
        for name in ("inference", "queue", "confidence"):
            _update_histogram(getattr(metrics, name), counts[name], _SECONDS)
        _update_histogram(metrics.batch_size, counts["batch_size"], 1)
        metrics.by_digit[:] = counts["digits"]
        metrics.unsure = counts["unsure"]
        metrics.queue_images.set(counts["queued_images"])
        metrics.last_success.set(counts["last_inference_ms"] / 1e3)
        for reason, before in self._dropped.items():
            metrics.requests_dropped.labels(reason).inc(counts[reason] - before)
            self._dropped[reason] = counts[reason]


def move_statistics(taken: dict[str, Any], statistics: Statistics) -> None:
    """Add a part of the result of `digitserve_native.Server.take_statistics`, that of one I/O thread."""
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        total, (count, ns) = getattr(statistics, name), taken[name]
        total.count += count
        total.ns += ns
    for images, (count, ns) in taken["batches"].items():
        statistics.add_runs(images, count, ns)
    statistics.last_inference_ms = max(statistics.last_inference_ms, taken["last_inference_ms"])


def _update_rpc(rpc: RpcMetrics, counts: dict[str, Any]) -> None:
    rpc.started = counts["started"]
    rpc.messages_received, rpc.messages_sent = counts["messages_received"], counts["messages_sent"]
    rpc.handled = dict(zip(CODES, counts["handled"], strict=True))
    for code, request_id, seconds in counts["exemplars_by_code"]:
        rpc.exemplars[CODES[code]] = Exemplar({"request_id": request_id}, 1.0, seconds)
    exemplars = [
        (bucket, Exemplar({"request_id": request_id}, ns * _SECONDS, seconds))
        for bucket, request_id, ns, seconds in counts["exemplars_by_bucket"]
    ]
    _update_histogram(rpc.handling, counts["handling"], _SECONDS, exemplars)


def _update_histogram(
    distribution: Histogram,
    counted: tuple[list[int], int],
    unit: float,
    exemplars: Sequence[tuple[int, Exemplar]] = (),
) -> None:
    counts, total = counted
    distribution.load_snapshot(counts, total * unit, exemplars)

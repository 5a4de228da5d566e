"""What the native transport counted, brought into the instruments and the statistics that Python has anyway."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from prometheus_client.samples import Exemplar

from service.observability.metrics import CODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.observability.histogram import Histogram
    from service.observability.metrics import Metrics, RpcMetrics
    from service.observability.statistics import Statistics

_SECONDS = 1e-9  # counted in nanoseconds


class Counts:
    """Those of one `digitserve_native.Server`, whose routes are `rpcs`: `to_metrics` before each scrape."""

    def __init__(self, server: Any, metrics: Metrics, rpcs: Sequence[RpcMetrics]) -> None:
        self._server = server
        self._metrics = metrics
        self._rpcs = rpcs
        self._dropped = dict.fromkeys(("cancelled", "deadline", "overloaded", "unauthenticated"), 0)
        metrics.connections_rejected = server.connections_refused()
        metrics.connections_ended = server.connections_ended()
        self._lock = Lock()  # two may scrape at a time

    def to_metrics(self) -> None:
        """Bring the instruments up to date."""
        with self._lock:
            for rpc, counts in zip(self._rpcs, self._server.rpcs(), strict=True):
                _to_rpc(rpc, counts)
            self._to_model(self._server.model())
            self._metrics.connections_rejected = self._server.connections_refused()
            self._metrics.connections_ended = self._server.connections_ended()

    def _to_model(self, counts: dict[str, Any]) -> None:
        metrics = self._metrics
        for name in ("inference", "queue", "confidence"):
            _load_histogram(getattr(metrics, name), counts[name], _SECONDS)
        _load_histogram(metrics.batch_size, counts["batch_size"], 1)
        metrics.by_digit[:] = counts["digits"]
        metrics.queue_images.set(counts["waiting"])
        metrics.last_success.set(counts["last_inference_ms"] / 1e3)
        for reason, before in self._dropped.items():
            metrics.requests_dropped.labels(reason).inc(counts[reason] - before)
            self._dropped[reason] = counts[reason]


def move_statistics(taken: dict[str, Any], statistics: Statistics) -> None:
    """Add what `take_statistics` of a `digitserve_native.Server` gave."""
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        total, (count, ns) = getattr(statistics, name), taken[name]
        total.count += count
        total.ns += ns
    for images, (count, ns) in taken["batches"].items():
        statistics.add_runs(images, count, ns)
    statistics.last_inference_ms = max(statistics.last_inference_ms, taken["last_inference_ms"])


def _to_rpc(rpc: RpcMetrics, counts: dict[str, Any]) -> None:
    rpc.started = counts["started"]
    rpc.messages_received, rpc.messages_sent = counts["received"], counts["sent"]
    rpc.handled = dict(zip(CODES, counts["handled"], strict=True))
    for code, request_id, seconds in counts["exemplars_by_code"]:
        rpc.exemplars[CODES[code]] = Exemplar({"request_id": request_id}, 1.0, seconds)
    exemplars = [
        (bucket, Exemplar({"request_id": request_id}, ns * _SECONDS, seconds))
        for bucket, request_id, ns, seconds in counts["exemplars_by_bucket"]
    ]
    _load_histogram(rpc.handling, counts["handling"], _SECONDS, exemplars)


def _load_histogram(
    distribution: Histogram,
    counted: tuple[list[int], int],
    unit: float,
    exemplars: Sequence[tuple[int, Exemplar]] = (),
) -> None:
    counts, total = counted
    distribution.load_snapshot(counts, total * unit, exemplars)

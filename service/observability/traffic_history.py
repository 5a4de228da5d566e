"""The traffic of the last minutes, from the process's own counters, for the status page."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from service.observability.rpc_metrics import LATENCY_BUCKETS, PREINITIALIZED_RPCS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.observability.metrics import Metrics

INTERVAL = 5.0
"""Seconds between two samples."""

CAPACITY = 180
"""Samples: 15 minutes."""


class Totals(NamedTuple):
    """Counters of the prediction RPCs at one time."""

    time: float
    calls: int
    failed_calls: int
    images: int
    latency: tuple[int, ...]
    """Unary calls by bucket of LATENCY_BUCKETS: a stream takes as long as its client keeps it open."""


class TrafficSample(NamedTuple):
    """The traffic between two samples."""

    calls: float
    failed_calls: float
    images: float
    """All per second."""
    p50: float | None
    p99: float | None
    """Seconds of a unary call; None without one."""


class TrafficHistory:
    """Samples the counters on its own thread, from `start` to `stop`; its memory is bounded."""

    def __init__(self, metrics: Metrics, interval: float = INTERVAL) -> None:
        self.interval = interval
        self._metrics = metrics
        self._samples: deque[TrafficSample] = deque(maxlen=CAPACITY)
        self._last = Totals(time.monotonic(), 0, 0, 0, (0,) * (len(LATENCY_BUCKETS) + 1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic history", daemon=True)

    @property
    def samples(self) -> list[TrafficSample]:
        """The samples, oldest first."""
        return [*self._samples]

    def start(self) -> None:
        """Sample from now on."""
        self._last = read_totals(self._metrics)
        self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._stopped.set()
        self._thread.join()

    def sample(self) -> None:
        """Add the traffic since the last sample."""
        totals = read_totals(self._metrics)
        self._samples.append(difference(self._last, totals))
        self._last = totals

    def _run(self) -> None:
        while not self._stopped.wait(self.interval):
            self.sample()


def read_totals(metrics: Metrics) -> Totals:
    """Read the counters."""
    if metrics.before_collect is not None:
        metrics.before_collect()
    rpcs = [one for one in metrics.rpcs if one.rpc.grpc_method in PREINITIALIZED_RPCS]
    handled = sum(sum(one.handled.values()) for one in rpcs)
    latencies = [one.handling.counts() for one in rpcs if one.rpc.grpc_type == "unary"]
    return Totals(
        time=time.monotonic(),
        calls=handled,
        failed_calls=handled - sum(one.handled["OK"] for one in rpcs),
        images=sum(metrics.by_digit),
        latency=tuple(map(sum, zip(*latencies, strict=True))) or (0,) * (len(LATENCY_BUCKETS) + 1),
    )


def difference(before: Totals, after: Totals) -> TrafficSample:
    """Return the traffic between two readings."""
    seconds = max(after.time - before.time, 1e-3)
    counts = [new - old for old, new in zip(before.latency, after.latency, strict=True)]
    return TrafficSample(
        calls=(after.calls - before.calls) / seconds,
        failed_calls=max(0, after.failed_calls - before.failed_calls) / seconds,
        images=(after.images - before.images) / seconds,
        p50=quantile(0.5, LATENCY_BUCKETS, counts),
        p99=quantile(0.99, LATENCY_BUCKETS, counts),
    )


def quantile(share: float, edges: Sequence[float], counts: Sequence[int]) -> float | None:
    """Estimate a quantile as Prometheus's histogram_quantile does; None without a value.

    `counts` are by bucket, and have one for the values above the last edge: those count as the last edge.
    """
    rank = share * sum(counts)
    if rank <= 0:
        return None
    below, lower = 0.0, 0.0
    for edge, count in zip(edges, counts, strict=False):
        if count and below + count >= rank:
            return lower + (edge - lower) * (rank - below) / count
        below, lower = below + count, edge
    return edges[-1]

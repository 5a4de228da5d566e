"""What a transport counted outside Python, under the names that the Prometheus instruments and statistics have."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.metrics import BATCH_BUCKETS, INFERENCE_BUCKETS, LATENCY_BUCKETS
from service.transports.status import code_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from service.metrics import Rpc
    from service.statistics import Statistics

Counts = dict[tuple[str, tuple[str, ...]], float]
"""Values by sample name and label values."""

_SECONDS = 1e-9  # counted in nanoseconds


class Summed(Collector):
    """The instruments of one registry with `counts` added: they stay the one place of names, labels and buckets."""

    def __init__(self, instruments: CollectorRegistry, counts: Callable[[], Counts]) -> None:
        self._instruments = instruments
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Every family, as a registry asks for it."""
        counts = self._counts()
        for family in self._instruments.collect():
            family.samples = [
                sample._replace(value=sample.value + counts.get((sample.name, tuple(sample.labels.values())), 0))
                for sample in family.samples
            ]
            yield family


def counted(server: Any, rpcs: Sequence[Rpc]) -> Counts:
    """What a `digitserve_native.Server` whose routes are `rpcs` has counted so far."""
    found: Counts = {}
    for rpc, counts in zip(rpcs, server.rpcs(), strict=True):
        found["grpc_server_started_total", rpc] = counts["started"]
        found["grpc_server_msg_received_total", rpc] = counts["received"]
        found["grpc_server_msg_sent_total", rpc] = counts["sent"]
        found["digits_requests_in_flight", rpc] = counts["in_flight"]
        for code, count in enumerate(counts["handled"]):
            found["grpc_server_handled_total", (*rpc, code_name(code))] = count
        found |= _histogram("grpc_server_handling_seconds", rpc, LATENCY_BUCKETS, counts["handling"], _SECONDS)
    model = server.model()
    found |= _histogram("digits_inference_seconds", (), INFERENCE_BUCKETS, model["inference"], _SECONDS)
    found |= _histogram("digits_queue_seconds", (), LATENCY_BUCKETS, model["queue"], _SECONDS)
    found |= _histogram("digits_batch_size", (), BATCH_BUCKETS, model["batch_size"], 1)
    found["digits_images_waiting", ()] = model["waiting"]
    for digit, count in enumerate(model["digits"]):
        found["digits_predictions_total", (str(digit),)] = count
    for reason in ("cancelled", "deadline", "overloaded"):
        found["digits_dropped_total", (reason,)] = model[reason]
    return found


def move_statistics(taken: dict[str, Any], statistics: Statistics) -> None:
    """Add what `take_statistics` of a `digitserve_native.Server` gave."""
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        total, (count, ns) = getattr(statistics, name), taken[name]
        total.count += count
        total.ns += ns
    for images, (count, ns) in taken["batches"].items():
        statistics.ran_before(images, count, ns)
    statistics.last_inference_ms = max(statistics.last_inference_ms, taken["last_inference_ms"])


def _histogram(
    name: str, labels: tuple[str, ...], edges: Sequence[float], counted: tuple[list[int], int], unit: float
) -> Counts:
    buckets, total = counted
    upto = list(accumulate(buckets))
    return {
        (f"{name}_sum", labels): total * unit,
        (f"{name}_count", labels): upto[-1],
        **{
            (f"{name}_bucket", (*labels, floatToGoString(edge))): count  # type: ignore[no-untyped-call]
            for edge, count in zip((*edges, float("inf")), upto, strict=True)
        },
    }

"""Curves over load and connections, of this server's transports and the no-op servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.load import calls
from bench.messages import INFER, PREDICT, infer_request, predict_request, sample_images

if TYPE_CHECKING:
    from bench.servers import Running

SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
"""Of the highest rate."""
CONNECTIONS = (1, 4, 16, 64, 256, 1000)
_SECONDS = 2.0


def measure(running: list[Running]) -> dict[str, Any]:
    """Open-loop latency at shares of the highest rate; rate, CPU and memory by connections, one call on each."""
    results: dict[str, Any] = {}
    for one in running:
        if INFER not in one.server.protocols and PREDICT not in one.server.protocols:
            continue  # over HTTP alone
        path = PREDICT if PREDICT in one.server.protocols else INFER
        message = [(predict_request if path == PREDICT else infer_request)(sample_images(1))]
        highest = calls(one, path, message, connections=8, in_flight=8, count=4000).rate
        latency = []
        for share in SHARES:
            rate = highest * share
            load = calls(
                one, path, message, connections=8, in_flight=1000, count=max(200, int(rate * _SECONDS)), rate=rate
            )
            latency.append({"share": share, "rate": rate, "p50": load.p50, "p99": load.p99, "answered": load.answered})
        connections = []
        for n in CONNECTIONS:
            load = calls(one, path, message, connections=n, in_flight=1, count=max(2000, 2 * n))
            row = {"connections": n, "rate": load.rate, "cpu_us": load.cpu_us, "megabytes": one.megabytes()}
            connections.append(row)
        results[one.server.name] = {"highest": highest, "latency": latency, "connections": connections}
    return results

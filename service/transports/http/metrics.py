"""The `http_server_*` series, with the names and labels of OpenTelemetry's semantic conventions.

https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import Gauge, Histogram

from service.observability.rpc_metrics import LATENCY_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_LABELS = ("http_request_method", "http_route")


def method_label(method: str) -> str:
    """Return a known method, or _OTHER: a client can send any."""
    return method if method in _METHODS else "_OTHER"


class HttpMetrics:
    """The series of all routes; a series exists from the start for each of `routes`, a method and a template."""

    def __init__(self, registry: CollectorRegistry, routes: Iterable[tuple[str, str]]) -> None:
        self._durations = Histogram(
            "http_server_request_duration_seconds",
            "Seconds from the headers of an HTTP request to its response.",
            (*_LABELS, "http_response_status_code"),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._active = Gauge("http_server_active_requests", "HTTP requests in progress.", _LABELS, registry=registry)
        self._connections = Gauge("http_server_connections", "Connections open on the HTTP port.", registry=registry)
        for method, route in routes:
            self._active.labels(method, route)
            self._durations.labels(method, route, "200")

    def set_connections(self, count: Callable[[], int]) -> None:
        """Export the number of open connections."""
        self._connections.set_function(count)

    def start(self, method: str, route: str) -> Callable[[int], None]:
        """Count the start of a request; call the result with the status code at its end."""
        labels = (method, route)
        active, started = self._active.labels(*labels), time.perf_counter()
        active.inc()

        def finish(status: int) -> None:
            active.dec()
            self._durations.labels(*labels, str(status)).observe(time.perf_counter() - started)

        return finish

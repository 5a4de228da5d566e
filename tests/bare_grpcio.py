"""The grpcio transport in the process of a test, with health and the services of the test, without model and queue."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.grpcio.transport import GrpcioTransport
from service.transports.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from service.handlers import Service
    from service.security.tls import Tls


class Bare(SimpleNamespace):
    address: str
    transport: GrpcioTransport
    registry: CollectorRegistry

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def listening(
    services: Sequence[Service] = (),
    *,
    grace: float = 5,
    on_health_change: Callable[[], object] = bool,
    tls: Tls | None = None,
    **limits: Any,
) -> AsyncIterator[Bare]:
    """Start a server whose health is SERVING; `limits` are the fields of `Limits`."""
    registry = CollectorRegistry()
    queue: Any = SimpleNamespace(is_full=False)
    transport = GrpcioTransport(
        services,
        queue,
        Telemetry(Metrics(registry), make_logger("json", "error")),
        TransportConfig(
            limits=Limits(**{"max_batch_size": 8, **limits}),
            reflection=not services,  # the services of a test have no descriptors
        ),
        SecurityConfig(tls=tls),
        on_health_change,
    )
    port = await transport.start("127.0.0.1", 0)
    await transport.set_serving(True)
    try:
        yield Bare(address=f"127.0.0.1:{port}", transport=transport, registry=registry)
    finally:
        await transport.stop(grace)

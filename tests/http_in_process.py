"""An HTTP server in the process of the test, with a gated model."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from conftest import ANSWERS_WITHIN
from gated_model import Held
from http_requests import INFER, binary_infer
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from service.batching.batcher import Batcher
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.http.application import HttpApplication
from service.transports.http.routes import make_routes
from service.transports.http.server import HttpServer
from service.transports.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from structlog.typing import FilteringBoundLogger

    from service.inference.model import Model

ROUTE = "/v2/models/{model}[/versions/{version}]/infer"


class Running:
    """An HTTP server in this process, with a gated model."""

    def __init__(self, server: HttpServer, held: Held, registry: CollectorRegistry, log: CapturingLogger) -> None:
        self.server = server
        self.held = held
        self.registry = registry
        self.log = log
        self.port = server.port

    def dropped(self, reason: str) -> float | None:
        return self.registry.get_sample_value("digits_requests_dropped_total", {"reason": reason})

    def ended(self, status: int, route: str = ROUTE, method: str = "POST") -> float | None:
        """Return the number of requests that ended with that status."""
        labels = {"http_request_method": method, "http_route": route, "http_response_status_code": str(status)}
        return self.registry.get_sample_value("http_server_request_duration_seconds_count", labels)

    def active(self) -> float | None:
        """Return the number of predictions in progress."""
        labels = {"http_request_method": "POST", "http_route": ROUTE}
        return self.registry.get_sample_value("http_server_active_requests", labels)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def infer(self, images: int = 1, **parameters: int) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self.connect()
        try:
            return await send(reader, writer, infer_request(images, **parameters))
        finally:
            writer.close()


def infer_request(images: int = 1, **parameters: int) -> bytes:
    body, headers = binary_infer(np.zeros((images, 784), np.uint8), parameters=parameters)
    lines = [f"POST {INFER} HTTP/1.1", "host: a", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, *(f"{key}: {value}" for key, value in headers.items()), "", ""]).encode() + body


async def send(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, dict[str, str], bytes]:
    writer.write(request)
    async with asyncio.timeout(ANSWERS_WITHIN):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


@asynccontextmanager
async def running(model: Model, *, max_queued_images: int = 1000, **limits: Any) -> AsyncIterator[Running]:
    held, registry, log = Held(model), CollectorRegistry(), CapturingLogger()
    telemetry = Telemetry(Metrics(registry), cast("FilteringBoundLogger", log))
    pipeline = compose_pipeline(
        Batcher,
        held,
        telemetry,
        PipelineConfig(max_batch_size=64, max_queued_images=max_queued_images, inline_images=0),
        ServerInfo(),
    )
    config = TransportConfig(limits=Limits(max_batch_size=64, **limits))
    routes = make_routes(pipeline.services, config.limits)
    application = HttpApplication(routes, telemetry, registry, config, SecurityConfig(), pipeline.batcher)
    server = HttpServer(application, limits=config.limits)
    await server.start("127.0.0.1", 0)
    try:
        yield Running(server, held, registry, log)
    finally:
        held.go.set()
        await server.stop(0)
        await pipeline.batcher.close()

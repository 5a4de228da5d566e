"""The composition root: constructs everything, starts it in order and stops it in reverse."""

from __future__ import annotations

import asyncio
import gc
import platform
import signal
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, disable_created_metrics

from service import __version__
from service.batcher import Batcher
from service.errors import StartError
from service.handlers.digits import DigitsHandler
from service.handlers.inference import InferenceHandler
from service.handlers.predicting import Predictor
from service.metrics import Metrics
from service.model import Model
from service.statistics import Statistics
from service.transports import native
from service.transports.grpcio import GrpcioTransport
from service.transports.http import HttpEndpoint
from service.transports.native import NativeBatcher, NativeTransport

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from service.config import Settings
    from service.handlers import Service
    from service.handlers.predicting import Batching


class Server:
    """One process, one model, one event loop.

    The constructor loads the model and needs a running event loop; `start` returns when health says SERVING. Raises
    StartError from either.
    """

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for every counter, which no dashboard here reads
        self._settings = settings
        self._log = log
        self._serving = False
        self.transport_name = chosen(settings.transport)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.metrics.serving.set_function(lambda: self._serving)
        self.model = Model(settings.model, sha256=settings.model_sha256)
        self.batcher: Batcher | NativeBatcher
        self.transport: GrpcioTransport | NativeTransport
        build = self._native if self.transport_name == "native" else self._grpcio
        self.batcher, self.transport = build(Statistics())
        self.port = self.metrics_port = 0

    def _grpcio(self, statistics: Statistics) -> tuple[Batcher, GrpcioTransport]:
        settings = self._settings
        batcher = Batcher(
            self.model,
            self.metrics,
            statistics,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            inline=settings.inline_images,
        )
        transport = GrpcioTransport(
            self._services(batcher, statistics),
            self.metrics,
            self._log,
            max_batch=settings.max_batch,
            with_reflection=settings.reflection,
        )
        return batcher, transport

    def _native(self, statistics: Statistics) -> tuple[NativeBatcher, NativeTransport]:
        settings, batcher = self._settings, NativeBatcher(self.model)
        transport = NativeTransport(
            self._services(batcher, statistics),
            batcher,
            self.metrics,
            statistics,
            self._log,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            inline=settings.inline_images,
            with_reflection=settings.reflection,
        )
        return batcher, transport

    def _services(self, batcher: Batching, statistics: Statistics) -> list[Service]:
        predictor = Predictor(batcher, statistics, max_batch=self._settings.max_batch)
        return [
            DigitsHandler(predictor, self.model.parameters()),
            InferenceHandler(predictor, serving=lambda: self._serving, server_version=__version__),
        ]

    async def start(self) -> None:
        """Listen everywhere, then say SERVING."""
        settings, info = self._settings, self.model.info
        self._http = HttpEndpoint(
            settings.metrics_host, settings.metrics_port, self.registry, serving=lambda: self._serving
        )
        self.metrics_port = self._http.port
        try:
            self.port = await self.transport.start(settings.host, settings.port)
        except BaseException:
            self._http.stop()
            raise
        self.metrics.serves(
            {
                "name": info.name,
                "version": info.version,
                "activation": info.activation,
                "accuracy": info.accuracy,
                "weights_sha256": info.weights_sha256,
                "content_sha256": info.content_sha256,
                "provider": self.model.provider,
                "transport": self.transport_name,
            },
            {
                "version": __version__,
                "python": platform.python_version(),
                "onnxruntime": self.model.runtime,
                "grpcio": version("grpcio"),
            },
        )
        await self.transport.open()
        self._serving = True

    async def stop(self) -> None:
        """Drain: health says NOT_SERVING first, what is in flight is answered, then everything ends."""
        self._serving = False
        await self.transport.stop(self._settings.drain_wait, self._settings.grace)
        await self.batcher.close()
        self._http.stop()


def chosen(transport: str) -> str:
    """The name of the transport that runs; StartError where it is asked for and not installed."""
    if transport == "native" and not native.is_installed():
        raise StartError(
            "--transport (or DIGITS_TRANSPORT) is 'native', but its wheel digitserve-native is not installed: "
            "run `make native`, or choose grpcio"
        )
    if transport == "auto":
        return "native" if native.is_installed() else "grpcio"
    return transport


async def serve(settings: Settings, log: FilteringBoundLogger, began: float) -> None:
    """Run a server until SIGTERM or SIGINT; `began` is when the process did, by `time.monotonic`."""
    stop = asyncio.Event()
    received: list[str] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number.name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    server = Server(settings, log)
    await server.start()
    # What is there by now stays to the end: the collector need not go through it again and again while requests wait.
    gc.freeze()
    log.info(
        "serving",
        address=f"{settings.host}:{server.port}",
        metrics=f"http://{settings.metrics_host}:{server.metrics_port}/metrics",
        model=server.model.info.name,
        model_version=server.model.info.version,
        activation=server.model.info.activation,
        weights_sha256=server.model.info.weights_sha256,
        provider=server.model.provider,
        transport=server.transport_name,
        seconds=round(time.monotonic() - began, 3),
    )
    await stop.wait()
    log.info("stopping", signal=received[0], grace=settings.grace)
    await server.stop()
    log.info("stopped")

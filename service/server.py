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
from service.handlers.digits import DigitsHandler
from service.handlers.inference import InferenceHandler
from service.handlers.predicting import Predictor
from service.metrics import Metrics
from service.model import Model
from service.statistics import Statistics
from service.transports.credentials import Tls, Tokens
from service.transports.grpcio import GrpcioTransport
from service.transports.http import HttpEndpoint

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from service.config import Settings


_GRPCIO_ALONE = ("tls_cert", "tokens_file")


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
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.metrics.serving.set_function(lambda: self._serving)
        self.model = Model(settings.model, sha256=settings.model_sha256)
        statistics = Statistics()
        self.batcher = Batcher(
            self.model,
            self.metrics,
            statistics,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            inline=settings.inline_images,
        )
        predictor = Predictor(self.batcher, statistics, max_batch=settings.max_batch)
        self.transport = GrpcioTransport(
            [
                DigitsHandler(predictor),
                InferenceHandler(predictor, serving=lambda: self._serving, server_version=__version__),
            ],
            self.metrics,
            log,
            max_batch=settings.max_batch,
            with_reflection=settings.reflection,
            tls=self._tls(),
            tokens=Tokens(settings.tokens_file, self.metrics, log) if settings.tokens_file else None,
            open_health=settings.open_health,
        )
        self.port = self.metrics_port = 0

    def _tls(self) -> Tls | None:
        settings = self._settings
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return Tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca, self.metrics, self._log)

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
                "transport": "grpcio",
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


def needs_grpcio(settings: Settings) -> list[str]:
    """The flags in use that only the grpcio transport knows; another one must not start in spite of them."""
    return [f"--{name.replace('_', '-')}" for name in _GRPCIO_ALONE if getattr(settings, name)]


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
        seconds=round(time.monotonic() - began, 3),
    )
    await stop.wait()
    log.info("stopping", signal=received[0], grace=settings.grace)
    await server.stop()
    log.info("stopped")

"""The composition root: constructs everything, starts it in order and stops it in reverse."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, disable_created_metrics

from service import __version__
from service.address import join_host_port
from service.batching.batcher import Batcher
from service.handlers.digits import DigitsHandler
from service.handlers.inference import InferenceHandler
from service.handlers.metadata import MetadataHandler
from service.handlers.predictor import Predictor
from service.inference.providers import CPU, NVIDIA_PROVIDERS
from service.inference.repository import ModelRepository
from service.observability import gpu_metrics
from service.observability.connections import established
from service.observability.metrics import Metrics
from service.observability.metrics_server import MetricsServer
from service.observability.statistics import Statistics
from service.runtime import components
from service.runtime.device_recovery import DeviceRecovery
from service.runtime.lifecycle import StopSignals, end_within
from service.runtime.reloader import Reloader
from service.runtime.traced_components import TracedBatcher, TracedPredictor
from service.runtime.watchdog import Watchdog
from service.security.file_watcher import watch
from service.transports.grpcio.transport import GrpcioTransport
from service.transports.native.transport import NativeBatcher, NativeTransport

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from structlog.typing import FilteringBoundLogger

    from service.config import Settings
    from service.handlers import Service
    from service.handlers.predictor import BatcherProtocol
    from service.inference.model import Model
    from service.runtime.watchdog import Watched


class Server:
    """One process, one model, one event loop.

    The constructor loads the model and needs a running event loop; `start` returns when health says SERVING. Raises
    StartError from either.
    """

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for every counter, which no dashboard here reads
        self._settings = settings
        self._log = log
        self._started = False
        self.transport_name, why = components.chosen_transport(settings)
        if why:
            log.info("transport chosen", transport=self.transport_name, reason=why)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.metrics.serving.set_function(self._is_serving)
        self.metrics.connections_limit.set(settings.max_connections)
        self._tracing = components.tracing(settings, self.metrics, log)
        self._sessions = components.session_factory(settings, log)
        place = ModelRepository(
            settings.model, version=settings.model_version, sha256=settings.model_sha256, sessions=self._sessions
        )
        self._reloader = Reloader(place, self.metrics, log)
        self._health = asyncio.Lock()
        self._device_recovery = DeviceRecovery(self.metrics, log, self._health_changed)
        self._watchdog = Watchdog(
            settings.watchdog_timeout, self.metrics, log, asyncio.get_running_loop(), self._health_changed
        )
        if self._sessions.name in NVIDIA_PROVIDERS:
            gpu_metrics.register(self.registry, settings.device_id, log)
        self.batcher: Batcher | NativeBatcher
        self.transport: GrpcioTransport | NativeTransport
        self._tls = components.tls(settings, self.metrics, log)
        self._tokens = components.tokens(settings, self.metrics, log)
        build = self._native if self.transport_name == "native" else self._grpcio
        self.batcher, self.transport = build(Statistics())
        self.port = self.metrics_port = 0
        self._background: set[asyncio.Task[None]] = set()

    @property
    def model(self) -> Model:
        """The model that serves now."""
        return self._reloader.model

    def _grpcio(self, statistics: Statistics) -> tuple[Batcher, GrpcioTransport]:
        settings = self._settings
        make = Batcher if self._tracing is None else partial(TracedBatcher, tracing=self._tracing)
        batcher = make(
            self._watched(self.model),
            self.metrics,
            statistics,
            max_batch_size=settings.max_batch_size,
            max_queued_images=settings.max_queued_images,
            inline=self._inline(),
        )
        transport = GrpcioTransport(
            self._services(batcher),
            batcher,
            self.metrics,
            self._log,
            limits=components.limits(settings),
            with_reflection=settings.reflection,
            tls=self._tls,
            tokens=self._tokens,
            health_without_token=settings.health_without_token,
            tracing=self._tracing,
            changed=self._health_changed,
        )
        return batcher, transport

    def _watched(self, model: Model) -> Watched:
        """`model` as callers see it: where it runs on the CPU itself, for a failure there is a fault of ours."""
        return self._watchdog.watch(model if self._sessions.name == CPU else self._device_recovery.guard(model))

    def _inline(self) -> int | None:
        """None is the transport's own; a device's run would keep the thread that speaks to callers for too long."""
        given = self._settings.inline_images
        return 0 if given is None and self._sessions.name != CPU else given

    def _native(self, statistics: Statistics) -> tuple[NativeBatcher, NativeTransport]:
        settings, batcher = self._settings, NativeBatcher(self._watched(self.model), statistics)
        transport = NativeTransport(
            self._services(batcher),
            batcher,
            self.metrics,
            self._log,
            limits=components.limits(settings),
            max_queued_images=settings.max_queued_images,
            inline=self._inline(),
            with_reflection=settings.reflection,
            tls=self._tls,
            tokens=self._tokens,
            health_without_token=settings.health_without_token,
        )
        return batcher, transport

    def _services(self, batcher: BatcherProtocol) -> list[Service]:
        settings = self._settings
        make = Predictor if self._tracing is None else partial(TracedPredictor, tracing=self._tracing)
        predictor = make(batcher, max_batch_size=settings.max_batch_size)
        return [
            DigitsHandler(predictor, self.metrics.requests_dropped.labels("overloaded").inc),
            InferenceHandler(
                predictor,
                MetadataHandler(
                    predictor,
                    is_serving=self._is_serving,
                    server_version=__version__,
                    provider=self.model.provider,
                    on_gpu=self._sessions.is_on_gpu,
                    reload=self._reload if settings.model_control else None,
                ),
            ),
        ]

    async def start(self) -> None:
        """Listen everywhere, then say SERVING."""
        settings = self._settings
        self._http = MetricsServer(
            settings.metrics_host,
            settings.metrics_port,
            self.registry,
            serving=self._is_serving,
            about=lambda: f"on {self.model.provider}" if self._is_serving() else self._unhealthy_reason,
        )
        self.metrics_port = self._http.port
        try:
            self.port = await self.transport.start(settings.host, settings.port)
        except BaseException:
            self._http.stop()
            raise
        self.metrics.connections.set_function(partial(established, self.port))
        self._set_model_info(self.model)
        self._started = True
        await self._tell_health()
        self._in_background(self._device_recovery.run())
        for files in (self._tls, self._tokens):
            if files is not None:
                self._in_background(watch(files, self._log))
        self._watchdog.start(self.transport.threads)
        if settings.model_poll:
            self._in_background(self._reloader.watch(self._swap, settings.model_poll))

    @property
    def _unhealthy_reason(self) -> str:
        """What keeps the server from serving, in a line for the operator; nothing while all is well."""
        return (
            self._watchdog.unhealthy_reason or self._device_recovery.unhealthy_reason or self.transport.unhealthy_reason
        )

    def _set_model_info(self, model: Model) -> None:
        self.metrics.set_model_info(
            model.info, provider=model.provider, runtime=model.runtime, transport=self.transport_name
        )

    def _is_serving(self) -> bool:
        """What health says, for any thread to ask, also while the event loop stands still."""
        return self._started and not self._unhealthy_reason

    def _health_changed(self) -> None:
        self._in_background(self._tell_health())

    async def _tell_health(self) -> None:
        async with self._health:  # of two changes the later has the last word
            await self.transport.set_serving(self._is_serving())

    def look_for_model(self) -> None:
        """Look for another version of the model in the background, as SIGHUP asks for."""
        self._in_background(self._reloader.look_in_background(self._swap, asked=True))

    async def _reload(self) -> None:
        await self._reloader.look(self._swap)

    def _swap(self, model: Model) -> None:
        self.batcher.swap(self._watched(model), Statistics())
        self._set_model_info(model)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Drain: health says NOT_SERVING first, what is in flight is answered, then everything ends.

        Once `hurry` is set what is left of the drain wait is skipped.
        """
        self._started = False
        self._watchdog.stop()
        for task in self._background:
            task.cancel()
        settings = self._settings
        await self._tell_health()
        with suppress(TimeoutError):
            await asyncio.wait_for((hurry or asyncio.Event()).wait(), settings.drain_wait)
            self._log.info("drain wait skipped")
        until = time.monotonic() + settings.shutdown_grace
        await self.transport.stop(settings.shutdown_grace)
        await self.batcher.close()
        if self._tracing is not None:
            await self._tracing.close(max(0.0, until - time.monotonic()))
        self._http.stop()


async def serve(settings: Settings, log: FilteringBoundLogger, began: float) -> None:
    """Run a server until SIGTERM or SIGINT; `began` is when the process did, by `time.monotonic`."""

    def on_hangup() -> None:
        server.look_for_model()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, on_hangup)  # before there is a server, for it would end the process
    server = Server(settings, log)
    signals = StopSignals(log)
    signals.listen()
    await server.start()
    # What is there by now stays to the end: the collector need not go through it again and again while requests wait.
    gc.freeze()
    log.info(
        "serving",
        address=join_host_port(settings.host, server.port),
        metrics=f"http://{join_host_port(settings.metrics_host, server.metrics_port)}/metrics",
        model=server.model.info.name,
        model_version=server.model.info.version,
        activation=server.model.info.activation,
        weights_sha256=server.model.info.weights_sha256,
        provider=server.model.provider,
        transport=server.transport_name,
        tls=settings.tls_cert is not None,
        client_certificates=settings.tls_client_ca is not None,
        tokens=settings.tokens_file is not None,
        seconds=round(time.monotonic() - began, 3),
    )
    await signals.first.wait()
    log.info("stopping", signal=signals.name, grace=settings.shutdown_grace)
    end_within(settings.drain_wait + settings.shutdown_grace, log)
    await server.stop(signals.second)
    log.info("stopped")

"""The life of the server: start, signals, drain, stop, exit."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from service.address import join_host_port
from service.observability.connections import count_established
from service.runtime.background import BackgroundTasks
from service.security.file_watcher import watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from service.batching.batcher import Batcher
    from service.config import Settings
    from service.observability.metrics_server import MetricsServer
    from service.observability.telemetry import Telemetry
    from service.runtime.device_recovery import DeviceRecovery
    from service.runtime.health import Health
    from service.runtime.model_swapper import ModelSwapper
    from service.runtime.watchdog import Watchdog
    from service.security.config import SecurityConfig
    from service.transports.grpcio.transport import GrpcioTransport
    from service.transports.http.server import HttpServer
    from service.transports.native.transport import NativeBatcher, NativeTransport
    from service.unix_socket import UnixSocketFile

_EXIT_DELAY = 5.0
"""Seconds beyond the grace until the process is forced to exit; only a hung thread takes so long."""


@dataclass(kw_only=True)
class Server:
    """One process, one model, one event loop. Each step of `start` registers the step that `stop` undoes it with."""

    settings: Settings
    telemetry: Telemetry
    transport_name: str
    metrics_server: MetricsServer
    security: SecurityConfig
    health: Health
    device_recovery: DeviceRecovery
    watchdog: Watchdog
    models: ModelSwapper
    batcher: Batcher | NativeBatcher
    transport: GrpcioTransport | NativeTransport
    http_server: HttpServer | None
    socket_file: UnixSocketFile | None
    port: int = field(init=False, default=0)
    _tasks: BackgroundTasks = field(init=False, default_factory=BackgroundTasks)
    _opened: AsyncExitStack = field(init=False, default_factory=AsyncExitStack)
    _stop_by: float = field(init=False, default=0.0)

    async def start(self) -> None:
        """Open the ports, then set health to SERVING; after a failure close them. Raises StartError."""
        settings = self.settings
        async with AsyncExitStack() as opened:
            self.metrics_server.start(settings.metrics_host, settings.metrics_port)
            opened.callback(self.metrics_server.stop)
            opened.push_async_callback(self._close_tracing)
            opened.push_async_callback(self.batcher.close)
            self.port = await self.transport.start(settings.host, settings.port, self.socket_file)
            opened.push_async_callback(self._stop_transport)
            if self.http_server is not None and settings.http_port is not None:
                await self.http_server.start(settings.host, settings.http_port)
                opened.push_async_callback(self._stop_http_server)
            bound_path = self.socket_file.bound_path if self.socket_file else ""
            self.telemetry.metrics.connections.set_function(partial(count_established, self.port, bound_path))
            self.watchdog.start(self.transport.threads, self.transport.active_runs)
            opened.callback(self.watchdog.stop)
            self._start_tasks()
            opened.callback(self._tasks.cancel)
            await self.health.start()
            self._opened = opened.pop_all()

    def _start_tasks(self) -> None:
        self._tasks.start(self.device_recovery.run())
        for files in self.security.watched_files:
            self._tasks.start(watch(files, self.telemetry.log))
        if self.settings.model_poll:
            self._tasks.start(self.models.poll(self.settings.model_poll))

    def request_reload(self) -> None:
        """Reload the model in the background, for SIGHUP."""
        self._tasks.start(self.models.reload_in_background())

    async def stop(self, skip_drain_wait: asyncio.Event | None = None) -> None:
        """Set health to NOT_SERVING, answer the calls in flight, then close all that `start` opened, in reverse.

        `skip_drain_wait` ends the wait between NOT_SERVING and the end of new calls.
        """
        await self.health.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for((skip_drain_wait or asyncio.Event()).wait(), self.settings.drain_wait)
            self.telemetry.log.info("drain wait skipped")
        self._stop_by = time.monotonic() + self.settings.shutdown_grace
        await self._opened.aclose()

    async def _stop_http_server(self) -> None:
        assert self.http_server is not None
        await self.http_server.stop(self._remaining_grace())

    async def _stop_transport(self) -> None:
        await self.transport.stop(self._remaining_grace())

    async def _close_tracing(self) -> None:
        if self.telemetry.tracing is not None:
            await self.telemetry.tracing.close(self._remaining_grace())

    def _remaining_grace(self) -> float:
        return max(0.0, self._stop_by - time.monotonic())

    def log_serving(self, process_start: float) -> None:
        """Log the addresses and the model; `process_start` is on the clock of `time.monotonic`."""
        settings, model = self.settings, self.models.model
        self.telemetry.log.info(
            "serving",
            address=join_host_port(settings.host, self.port),
            **({} if self.socket_file is None else {"listen": settings.listen}),
            **({} if self.http_server is None else {"http": join_host_port(settings.host, self.http_server.port)}),
            metrics=f"http://{join_host_port(settings.metrics_host, self.metrics_server.port)}/metrics",
            model=model.info.name,
            model_version=model.info.version,
            activation=model.info.activation,
            weights_sha256=model.info.weights_sha256,
            provider=model.provider,
            transport=self.transport_name,
            tls=settings.tls_cert is not None,
            client_certificates=settings.tls_client_ca is not None,
            tokens=settings.tokens_file is not None,
            seconds=round(time.monotonic() - process_start, 3),
        )


async def run(
    compose: Callable[[Settings, FilteringBoundLogger], Server],
    settings: Settings,
    log: FilteringBoundLogger,
    process_start: float,
) -> None:
    """Run a server until SIGTERM or SIGINT; `process_start` is on the clock of `time.monotonic`."""

    def on_sighup() -> None:
        server.request_reload()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, on_sighup)  # before the server exists: SIGHUP would end the process
    server = compose(settings, log)
    signals = StopSignals(log)
    signals.listen()
    await server.start()
    gc.freeze()  # objects of the start live to the end: the collector need not visit them while requests wait
    server.log_serving(process_start)
    await signals.first.wait()
    log.info("stopping", signal=signals.name, grace=settings.shutdown_grace)
    _force_exit_after(settings.drain_wait + settings.shutdown_grace, log)
    await server.stop(signals.second)
    log.info("stopped")


class StopSignals:
    """SIGTERM and SIGINT: the first requests a stop, the second skips the drain wait, the third ends the process."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.name = ""
        """The name of the first."""
        self._log = log

    def listen(self) -> None:
        """Handle them from now on, on the running event loop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self.first.is_set():
            self.name = number.name
            self.first.set()
        elif not self.second.is_set():
            self.second.set()
        else:
            _force_exit(self._log, f"a third signal, {number.name}")


def _force_exit_after(seconds: float, log: FilteringBoundLogger) -> None:
    """End the process after so many seconds: a run or a read that hangs keeps its thread alive."""
    reason = f"it had not ended {_EXIT_DELAY:g} s after the grace"
    timer = threading.Timer(seconds + _EXIT_DELAY, _force_exit, (log, reason))
    timer.daemon = True
    timer.start()


def _force_exit(log: FilteringBoundLogger, reason: str) -> None:
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    log.error("forced exit", reason=reason, threads=threads)
    os._exit(1)

"""The Python side of the native transport, which starts and stops the server of the wheel digitserve_native.

HTTP/2, decoding, admission, batching and encoding of plain requests for predictions happen in Rust. Its calls into
Python are in `service.transports.native.callbacks`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from grpc_health.v1 import health

from service.address import ensure_bindable
from service.cpus import available_cpus
from service.errors import AddressInUse
from service.handlers.reflection import reflection_handlers
from service.observability.metrics import (
    BATCH_BUCKETS,
    CONFIDENCE_BUCKETS,
    INFERENCE_BUCKETS,
)
from service.observability.rpc_metrics import LATENCY_BUCKETS
from service.security.handshake import HANDSHAKE_TIMEOUT, verify_by_handshake
from service.transports.native import wheel
from service.transports.native.callbacks import PendingPrediction, PythonCallbacks
from service.transports.native.metrics import NativeMetricsBridge, move_statistics
from service.transports.native.routes import endpoints, route
from service.transports.native.session import load_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.batching.batcher import InferenceModel
    from service.handlers import Service
    from service.handlers.shared_memory import SharedMemoryRegions
    from service.network import ModelInfo, Parameters, Pixels, Predictions
    from service.observability.metrics import Metrics
    from service.observability.statistics import Statistics
    from service.observability.telemetry import Telemetry
    from service.security.certificates import Pem
    from service.security.config import SecurityConfig
    from service.transports.config import TransportConfig
    from service.unix_socket import UnixSocketFile

INLINE_IMAGES = 128
"""Default of `--inline-images`: a run of 128 images takes 30 us, a few times the I/O thread's time for a call."""
MAX_DEFAULT_IO_THREADS = 16
_BUCKETS = {
    "latency": LATENCY_BUCKETS,
    "inference": INFERENCE_BUCKETS,
    "batch_size": BATCH_BUCKETS,
    "confidence": CONFIDENCE_BUCKETS,
}


class NativeBatcher:
    """The native queue for Python handlers, in place of `service.batching.batcher.Batcher`."""

    def __init__(
        self,
        model: InferenceModel,
        metrics: Metrics,
        statistics: Statistics,
        *,
        max_batch_size: int,
        max_queued_images: int,
        inline: int | None = None,
    ) -> None:
        self.model = model
        self.max_batch_size = max_batch_size
        self.max_queued_images = max_queued_images
        self.inline = INLINE_IMAGES if inline is None else inline
        metrics.queue_capacity.set(max_queued_images)
        self._statistics = statistics
        self.server: Any = None
        """The `digitserve_native.Server`; the transport sets it."""
        self.load_session: Callable[[InferenceModel], None]
        """Lets Rust run a model that serves; the transport sets it."""

    @property
    def info(self) -> ModelInfo:
        """Of the model that serves now."""
        return self.model.info

    @property
    def parameters(self) -> Parameters:
        """Of the same model."""
        return self.model.parameters

    @property
    def statistics(self) -> Statistics:
        """Of the same model, with the native transport's counts up to now."""
        if self.server is not None:
            for taken in self.server.take_statistics():
                move_statistics(taken, self._statistics)
        return self._statistics

    def swap(self, model: InferenceModel, statistics: Statistics) -> None:
        """As `Batcher.swap`, on the event loop, so that the models of Python and of the queue change in one step."""
        self.server.set_model(model, model.info.name, model.info.version)
        Thread(target=self.load_session, args=(model,), name="native-session", daemon=True).start()
        self.model, self._statistics = model, statistics

    async def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Predictions:
        """As `Batcher.predict`: the request's own rows, DeadlineExceeded or Overloaded."""
        remaining = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        pending = PendingPrediction()
        self.server.submit(_bytes_of(pixels), remaining, pending)
        return await pending.future

    def run_batch(self, _: Pixels, __: int) -> None:
        """Return None: the native queue gathers the batches."""

    async def close(self) -> None:
        """Return at once: the stop of the transport has answered all requests."""


def _bytes_of(pixels: Pixels) -> bytes:
    """Return the bytes that an array is a view of, or a copy of its own."""
    owner = pixels.base
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, bytes) and len(owner) == pixels.nbytes else pixels.tobytes()


class NativeTransport:
    """Serves on threads of its own: `start` listens, `set_serving` sets health, `stop` drains.

    Each of `io_threads` threads serves its connections, and as many threads run large batches. The handlers run on the
    event loop that called `start`. Raises CredentialsError for files that rustls cannot use, and AddressInUse from
    `start`.
    """

    unhealthy_reason = ""
    """Always empty: the watchdog detects dead threads."""

    def __init__(
        self,
        services: Sequence[Service],
        batcher: NativeBatcher,
        telemetry: Telemetry,
        config: TransportConfig,
        security: SecurityConfig,
        *,
        io_threads: int = 1,
        regions: SharedMemoryRegions | None = None,
    ) -> None:
        names, metrics = [service.name for service in services], telemetry.metrics
        reflection = reflection_handlers((*names, health.SERVICE_NAME)) if config.reflection else []
        rpcs = [*endpoints((*services, *reflection), metrics)]
        handlers = {endpoint.rpc.method: endpoint.handler for endpoint in rpcs if endpoint.handler}
        alternatives = {
            f"/{service.name}/{name}": alternative.handler
            for service in services
            for name, alternative in service.alternatives.items()
        }
        self._callbacks = PythonCallbacks(handlers, alternatives, telemetry.log)
        self._server = batcher.server = wheel.create_server(
            self._callbacks,
            [route(endpoint, config, security) for endpoint in rpcs],
            model=batcher.model,
            model_name=batcher.info.name,
            model_version=batcher.info.version,
            limits=config.limits,
            io_threads=io_threads,
            max_queued_images=batcher.max_queued_images,
            inline_images=batcher.inline,
            buckets=_BUCKETS,
            health_services=["", *names],
            regions_user=None if regions is None else os.geteuid(),
        )
        if regions is not None:
            regions.subscribe(self._server)
        self._log = telemetry.log
        batcher.load_session = self._load_session
        self._load_session(batcher.model)
        self._subscribe(security)
        bridge = NativeMetricsBridge(self._server, metrics, [endpoint.rpc for endpoint in rpcs])
        metrics.before_collect = bridge.update
        # A device runs batches in turn: with one thread, the requests that arrive meanwhile form the next batch.
        model_threads = io_threads if batcher.inline > 0 else 1
        self._io_threads = _threads("native", self._server.run, io_threads)
        self._model_threads = _threads("native-model", self._server.run_large_batches, model_threads)
        self.threads = [*self._io_threads, *self._model_threads]

    def _load_session(self, model: InferenceModel) -> None:
        """Let Rust run the model, if the CPU does and if both have the same results. Until then Python runs it."""
        session = load_session(model, self._log)
        if session is not None:
            self._server.set_session(model, session)

    def _subscribe(self, security: SecurityConfig) -> None:
        if security.tls is not None:
            security.tls.subscribe(self._set_tls)
        if security.tokens is not None:
            security.tokens.subscribe(self._server.set_tokens)

    async def start(self, host: str, port: int, socket_file: UnixSocketFile | None = None) -> int:
        """Listen, with health NOT_SERVING; return the port."""
        self._callbacks.loop = asyncio.get_running_loop()
        ensure_bindable(host, port)
        try:
            bound = int(self._server.listen(host, port))
        except OSError as e:
            raise AddressInUse(f"cannot listen on {host} port {port}: {e}") from e
        self._listen_on_socket(socket_file)
        for thread in self.threads:
            thread.start()
        return bound

    def _listen_on_socket(self, socket_file: UnixSocketFile | None) -> None:
        self._socket_file = socket_file
        if socket_file is None:
            return
        socket_file.ensure_bindable()
        with socket_file.binding() as bound_path:
            try:
                self._server.listen_unix(bound_path)
            except OSError as e:
                raise AddressInUse(f"--listen: cannot listen on {socket_file.path}: {e}") from e

    async def set_serving(self, serving: bool) -> None:
        """Set SERVING or NOT_SERVING, for the empty name and for each service."""
        self._server.set_serving(serving)

    async def stop(self, grace: float) -> None:
        """Set NOT_SERVING, accept no new calls and let open ones finish.

        Calls that are open after `grace` seconds are cancelled.
        """
        self._server.set_serving(False)
        self._server.drain(grace)
        if self._socket_file is not None:
            self._socket_file.remove()
        await asyncio.to_thread(_join, self._io_threads)
        self._server.close()
        await asyncio.to_thread(_join, self._model_threads)

    def active_runs(self) -> list[int]:
        """Return the numbers of the runs in progress without Python."""
        return list(self._server.active_runs())

    def _set_tls(self, pem: Pem) -> None:
        verify_by_handshake(pem, _handshake_server)
        self._server.set_tls(*pem)


def default_io_threads() -> int:
    """Return the default of `--io-threads`: the other half of the CPUs is for large batches, Python and the kernel."""
    return max(1, min(MAX_DEFAULT_IO_THREADS, int(available_cpus() / 2)))


def _threads(name: str, target: Callable[[int], None], count: int) -> list[Thread]:
    return [Thread(target=target, args=(at,), name=f"{name}-{at}", daemon=True) for at in range(count)]


def _join(threads: Sequence[Thread]) -> None:
    for thread in threads:
        thread.join()


@contextmanager
def _handshake_server(pem: Pem) -> Iterator[int]:
    """Yield a loopback port on which rustls performs one handshake."""
    handshake = wheel.load().Handshake(pem.chain, pem.key)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(HANDSHAKE_TIMEOUT)
    port = int(listener.getsockname()[1])
    Thread(target=_perform_handshake, args=(listener, handshake), name="handshake", daemon=True).start()
    yield port


def _perform_handshake(listener: socket.socket, handshake: Any) -> None:
    with listener, suppress(OSError):  # the client reports a failure
        client, _ = listener.accept()
        with client:
            client.settimeout(HANDSHAKE_TIMEOUT)
            while received := client.recv(2**16):
                client.sendall(handshake.process(received))

"""The thin Python side of the native transport: the wheel digitserve_native serves, this answers what it asks.

HTTP/2, decoding, checks, admission, batching and encoding of the plain requests for predictions happen there; what it
asks of Python is in `service.transports.native.callbacks`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from grpc_health.v1 import health

from service.address import ensure_bindable
from service.errors import AddressInUse
from service.handlers.reflection import reflection_handlers
from service.observability.metrics import (
    BATCH_BUCKETS,
    CONFIDENCE_BUCKETS,
    INFERENCE_BUCKETS,
    LATENCY_BUCKETS,
    Rpc,
    RpcMetrics,
)
from service.security.handshake import HANDSHAKE_TIMEOUT, verify_by_handshake
from service.transports.limits import HEALTH_MESSAGE, SMALL_MESSAGE
from service.transports.native.callbacks import Host, Waiting
from service.transports.native.metrics import Counts, move_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from service.batching.batcher import InferenceModel
    from service.handlers import MessageHandler, Service
    from service.network import ModelInfo, Parameters, Pixels, Predictions
    from service.observability.metrics import Metrics
    from service.observability.statistics import Statistics
    from service.security.certificates import Pem
    from service.security.tls import Tls
    from service.security.tokens import Tokens
    from service.transports.limits import Limits

WHEEL = "digitserve_native"
INLINE_IMAGES = 128
"""A run of so many takes 30 us, a few times what a call takes of the thread that speaks to callers."""
_HOT = {
    "/digits.v1.DigitService/Predict": "predict",
    "/digits.v1.DigitService/PredictStream": "predict-stream",
    "/inference.GRPCInferenceService/ModelInfer": "infer",
    "/inference.GRPCInferenceService/ModelStreamInfer": "infer-stream",
}
_REPLY_PER_BYTE = {"/digits.v1.DigitService/Explain": 400}
"""Bytes of reply for one of the request, where it is more than one: all 42 neurons of an image take 6.4 kB each."""
_HEALTH = {"Check": "unary", "List": "unary", "Watch": "server_stream"}


def is_installed() -> bool:
    """Whether the wheel is."""
    return find_spec(WHEEL) is not None


class NativeBatcher:
    """The native line as Python handlers see it, in the place of `service.batching.batcher.Batcher`."""

    def __init__(self, model: InferenceModel, statistics: Statistics) -> None:
        self.model = model
        self.statistics = statistics
        """Of that model alone."""
        self.server: Any = None
        """Set by the transport that serves."""

    @property
    def info(self) -> ModelInfo:
        """Of the model that answers whoever comes now."""
        return self.model.info

    @property
    def parameters(self) -> Parameters:
        """Of that model too."""
        return self.model.parameters

    def swap(self, model: InferenceModel, statistics: Statistics) -> None:
        """As `Batcher.swap`: on the event loop, where Python's view of the model and the line's change in one step."""
        self.server.set_model(model, model.info.name, model.info.version)
        self.model, self.statistics = model, statistics

    async def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Predictions:
        """As `Batcher.predict`: the caller's own rows, DeadlineExceeded or Overloaded."""
        remaining = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        waiting = Waiting()
        self.server.submit(pixels.tobytes(), remaining, waiting)
        return await waiting.future

    def run_batch(self, _: Pixels, __: int) -> None:
        """Never: what comes together is gathered before Python hears of it."""

    async def close(self) -> None:
        """Nothing: the transport's stop has answered all."""


class NativeTransport:
    """Serves on threads of its own: `start` listens, `set_serving` sets health, `stop` drains.

    The handlers run on the event loop that called `start`. With `tokens` a call must bring one, health checks too
    unless `health_without_token`. Raises CredentialsError for what rustls cannot use, and AddressInUse from `start`.
    """

    unhealthy_reason = ""
    """Its threads hold the port; whether they live is the watchdog's to tell."""

    def __init__(
        self,
        services: Sequence[Service],
        batcher: NativeBatcher,
        metrics: Metrics,
        log: FilteringBoundLogger,
        *,
        limits: Limits,
        max_queued_images: int,
        inline: int | None = None,
        with_reflection: bool,
        tls: Tls | None = None,
        tokens: Tokens | None = None,
        health_without_token: bool = True,
    ) -> None:
        names = [service.name for service in services]
        reflection = reflection_handlers((*names, health.SERVICE_NAME)) if with_reflection else []
        offered = [*_offered((*services, *reflection))]
        rpcs = [RpcMetrics(metrics, one.rpc) for one in offered]
        answers = {rpc.method: one.answer for rpc, one in zip(rpcs, offered, strict=True) if one.answer}
        open_services = [health.SERVICE_NAME] if health_without_token else []
        routes = [
            (
                rpc.method,
                _HOT.get(rpc.method, one.kind),
                tokens is not None and one.rpc.grpc_service not in open_services,
                _largest_message(one.rpc, rpc.method, limits),
                _REPLY_PER_BYTE.get(rpc.method, 1),
            )
            for rpc, one in zip(rpcs, offered, strict=True)
        ]
        self._batcher = batcher
        alternatives = {
            f"/{service.name}/{name}": alternative.handler
            for service in services
            for name, alternative in service.alternatives.items()
        }
        self._host = Host(answers, alternatives, log, before_answer=self._settle_statistics)
        self._server = batcher.server = import_module(WHEEL).Server(
            self._host,
            routes,
            model=batcher.model,
            model_name=batcher.info.name,
            model_version=batcher.info.version,
            limits=limits,
            max_queued_images=max_queued_images,
            inline=INLINE_IMAGES if inline is None else inline,
            latency_buckets=LATENCY_BUCKETS,
            inference_buckets=INFERENCE_BUCKETS,
            batch_buckets=BATCH_BUCKETS,
            confidence_buckets=CONFIDENCE_BUCKETS,
            health_names=["", *names],
        )
        if tls is not None:
            tls.subscribe(self._use)
        if tokens is not None:
            tokens.subscribe(self._server.set_tokens)
        metrics.queue_capacity.set(max_queued_images)
        metrics.before_collect = Counts(self._server, metrics, rpcs).to_metrics
        self.threads = [
            Thread(target=self._server.run, name="native", daemon=True),
            Thread(target=self._server.run_model, name="native-model", daemon=True),
        ]

    async def start(self, host: str, port: int) -> int:
        """Listen, with health saying NOT_SERVING; returns the port."""
        self._host.loop = asyncio.get_running_loop()
        ensure_bindable(host, port)
        try:
            bound = int(self._server.listen(host, port))
        except OSError as e:
            raise AddressInUse(f"cannot listen on {host} port {port}: {e}") from e
        for thread in self.threads:
            thread.start()
        return bound

    async def set_serving(self, serving: bool) -> None:
        """Say SERVING or NOT_SERVING, under the empty name and each service's."""
        self._server.set_healthy(serving)

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls and let those in flight finish.

        After `grace` seconds what still runs is cut off.
        """
        self._server.set_healthy(False)
        self._server.drain(grace)
        serving, running = self.threads
        await asyncio.to_thread(serving.join)
        self._server.close()
        await asyncio.to_thread(running.join)

    def _use(self, pem: Pem) -> None:
        verify_by_handshake(pem, _served)
        self._server.set_tls(*pem)

    def _settle_statistics(self) -> None:
        move_statistics(self._server.take_statistics(), self._batcher.statistics)


@contextmanager
def _served(pem: Pem) -> Iterator[int]:
    """A port of loopback on which rustls shakes hands with one client and no more."""
    handshake = import_module(WHEEL).Handshake(pem.chain, pem.key)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(HANDSHAKE_TIMEOUT)
    port = int(listener.getsockname()[1])
    Thread(target=_shake_hands, args=(listener, handshake), name="rehearsal", daemon=True).start()
    yield port


def _shake_hands(listener: socket.socket, handshake: Any) -> None:
    with listener, suppress(OSError):  # the client's view of a failure is the one that counts
        client, _ = listener.accept()
        with client:
            client.settimeout(HANDSHAKE_TIMEOUT)
            while received := client.recv(2**16):
                client.sendall(handshake.answer(received))


class _Offered(NamedTuple):
    """An RPC, how it is served, and the handler of those that Python answers."""

    rpc: Rpc
    kind: str
    answer: MessageHandler | None = None


def _offered(services: Sequence[Service]) -> Iterator[_Offered]:
    for service in services:
        for name, answer in service.unary.items():
            yield _Offered(Rpc("unary", service.name, name), "unary", answer)
        for name, answer in service.streams.items():
            yield _Offered(Rpc("bidi_stream", service.name, name), "stream", answer)
    for name, kind in _HEALTH.items():
        yield _Offered(Rpc(kind, health.SERVICE_NAME, name), f"health-{name.lower()}")


def _largest_message(rpc: Rpc, method: str, limits: Limits) -> int:
    if rpc.grpc_service == health.SERVICE_NAME:
        return HEALTH_MESSAGE
    return limits.max_message_bytes if method in _HOT or method in _REPLY_PER_BYTE else SMALL_MESSAGE

"""The thin Python side of the native transport: the wheel digitserve_native serves, this answers what it asks.

HTTP/2, decoding, checks, admission, batching and encoding of the plain requests for predictions happen there. Here are
the run of the model, once a batch; the handlers, for every other message; and what a refusal says.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from importlib import import_module
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from service.errors import AddressInUse, DeadlinePassed, ModelUnavailable, Overloaded, ServiceError
from service.handlers.predicting import PIXELS
from service.metrics import BATCH_BUCKETS, CONFIDENCE_BUCKETS, INFERENCE_BUCKETS, LATENCY_BUCKETS, Rpc, RpcMetrics
from service.transports.address import check_free
from service.transports.counts import Counts, move_statistics
from service.transports.status import code_name, to_status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from service.batcher import Runnable
    from service.handlers import Answer, Service
    from service.metrics import Metrics
    from service.model import Pixels, Predictions
    from service.statistics import Statistics
    from service.transports.limits import Limits

WHEEL = "digitserve_native"
INLINE_IMAGES = 128
"""A run of so many takes 30 us, a few times what a call takes of the thread that speaks to callers."""
SHORTEST_RETRY = 0.01
_HOT = {
    "/digits.v1.DigitService/Predict": "predict",
    "/digits.v1.DigitService/PredictStream": "predict-stream",
    "/inference.GRPCInferenceService/ModelInfer": "infer",
    "/inference.GRPCInferenceService/ModelStreamInfer": "infer-stream",
}
_HEALTH = {"Check": "unary", "List": "unary", "Watch": "server_stream"}


def is_installed() -> bool:
    """Whether the wheel is."""
    return find_spec(WHEEL) is not None


class NativeBatcher:
    """The native line as Python handlers see it, in the place of `service.batcher.Batcher`."""

    def __init__(self, model: Runnable, statistics: Statistics) -> None:
        self.info = model.info
        self.parameters = model.parameters
        self.model = model
        self.statistics = statistics
        self.server: Any = None
        """Set by the transport that serves."""

    async def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Predictions:
        """As `Batcher.predict`: the caller's own rows, DeadlinePassed or Overloaded."""
        remaining = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        waiting = _Waiting()
        self.server.submit(pixels.tobytes(), remaining, waiting)
        return await waiting.future

    async def close(self) -> None:
        """Nothing: the transport's stop has answered all."""


class NativeTransport:
    """Serves on threads of its own: `start` listens, `say` tells health, `stop` drains.

    The handlers run on the event loop that called `start`. Raises AddressInUse from there.
    """

    def __init__(
        self,
        services: Sequence[Service],
        batcher: NativeBatcher,
        metrics: Metrics,
        statistics: Statistics,
        log: FilteringBoundLogger,
        *,
        limits: Limits,
        max_waiting: int,
        inline: int | None = None,
        with_reflection: bool,
    ) -> None:
        rpcs: list[RpcMetrics] = []
        answers: dict[str, Answer] = {}
        routes: list[tuple[str, str]] = []

        def add(rpc: Rpc, kind: str, answer: Answer | None = None) -> None:
            rpcs.append(RpcMetrics(metrics, rpc))
            path = rpcs[-1].method
            routes.append((path, _HOT.get(path, kind)))
            if answer is not None:
                answers[path] = answer

        for service in services:
            for name, answer in service.unary.items():
                add(Rpc("unary", service.name, name), "unary", answer)
            for name, answer in service.streams.items():
                add(Rpc("bidi_stream", service.name, name), "stream", answer)
        for name, kind in _HEALTH.items():
            add(Rpc(kind, health.SERVICE_NAME, name), f"health-{name.lower()}")
        names = [service.name for service in services]
        if with_reflection:
            reflect = _reflecting((*names, health.SERVICE_NAME, reflection.SERVICE_NAME))
            add(Rpc("bidi_stream", reflection.SERVICE_NAME, "ServerReflectionInfo"), "stream", reflect)
        self._host = _Host(batcher.model, answers, self._settle_statistics, log)
        self._statistics = statistics
        self._server = batcher.server = import_module(WHEEL).Server(
            self._host,
            routes,
            model_name=batcher.info.name,
            model_version=batcher.info.version,
            max_batch=limits.max_batch,
            max_waiting=max_waiting,
            inline=INLINE_IMAGES if inline is None else inline,
            max_message=limits.message,
            keepalive=limits.keepalive,
            keepalive_timeout=limits.keepalive_timeout,
            latency_buckets=LATENCY_BUCKETS,
            inference_buckets=INFERENCE_BUCKETS,
            batch_buckets=BATCH_BUCKETS,
            confidence_buckets=CONFIDENCE_BUCKETS,
            health_names=["", *names],
        )
        metrics.waiting_limit.set(max_waiting)
        metrics.before_collect = Counts(self._server, metrics, rpcs).to_metrics
        self._threads = [
            Thread(target=self._server.run, name="native", daemon=True),
            Thread(target=self._server.run_model, name="native-model", daemon=True),
        ]

    async def start(self, host: str, port: int) -> int:
        """Listen, with health saying NOT_SERVING; returns the port."""
        self._host.loop = asyncio.get_running_loop()
        check_free(host, port)
        try:
            bound = int(self._server.listen(host, port))
        except OSError as e:
            raise AddressInUse(f"cannot listen on {host} port {port}: {e}") from e
        for thread in self._threads:
            thread.start()
        return bound

    async def say(self, serving: bool) -> None:
        """Say SERVING or NOT_SERVING, under the empty name and each service's."""
        self._server.set_healthy(serving)

    async def stop(self, drain_wait: float, grace: float) -> None:
        """Say NOT_SERVING, go on for `drain_wait` seconds, then take no new calls and let those in flight finish.

        After `grace` seconds what still runs is cut off.
        """
        self._server.set_healthy(False)
        await asyncio.sleep(drain_wait)
        self._server.drain(grace)
        serving, running = self._threads
        await asyncio.to_thread(serving.join)
        self._server.close()
        await asyncio.to_thread(running.join)

    def _settle_statistics(self) -> None:
        move_statistics(self._server.take_statistics(), self._statistics)


class _Host:
    """What the wheel calls, on threads of its own; the handlers run on `loop`."""

    def __init__(
        self,
        model: Runnable,
        answers: dict[str, Answer],
        before_answer: Callable[[], None],
        log: FilteringBoundLogger,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._model = model
        self._answers = answers
        self._before_answer = before_answer
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    def array(self, images: int) -> Pixels:
        """Where a thread gathers its batches, (images, 784)."""
        return np.zeros((images, PIXELS), np.uint8)

    def predict(self, pixels: Pixels, images: int) -> Predictions:
        """One run of the model on the first so many images."""
        return self._model.predict(pixels[:images])

    def ask(self, path: str, message: bytes, remaining: float | None, reply: Any) -> None:
        """Let the handler answer `reply`; `remaining` is in seconds."""
        deadline = float("inf") if remaining is None else time.monotonic() + remaining
        self.loop.call_soon_threadsafe(self._begin, path, message, deadline, reply)

    def _begin(self, path: str, message: bytes, deadline: float, reply: Any) -> None:
        task = self.loop.create_task(self._answer(path, message, deadline, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, path: str, message: bytes, deadline: float, reply: Any) -> None:
        if reply.is_gone():
            return
        self._before_answer()
        try:
            reply.answer(await self._answers[path](message, deadline))
        except Exception as error:  # noqa: BLE001 (whatever failed, its caller must hear of it)
            reply.fail(error)

    def refuse(self, path: str, request_id: str | None, error: Exception) -> tuple[int, str, bytes, str]:
        """What the caller of `path` hears of an error: code, sentence, details and request id; the log hears too."""
        status, request_id = to_status(error), request_id or uuid.uuid4().hex
        about = {"method": path, "code": code_name(status.code), "request_id": request_id}
        if isinstance(error, ServiceError):
            self._log.warning("refused", reason=str(error), **about)
        else:
            self._log.error("failed", exc_info=error, **about)
        return status.code, status.message, status.SerializeToString(), request_id

    def sentence(self, error: Exception) -> str | None:
        """What a refusal within a stream says; nothing where it is a fault of ours."""
        return str(error) if isinstance(error, ServiceError) else None

    def late(self) -> Exception:
        """The error of a request whose time has run out in the line."""
        return late()

    def overloaded(self, waiting: int, max_waiting: int, retry_after: float) -> Exception:
        """The error of a request that found the line full."""
        return overloaded(waiting, max_waiting, retry_after)

    def stopping(self) -> Exception:
        """The error of a stream that a drain ends."""
        return ModelUnavailable("the server is stopping: open the stream again elsewhere")


class _Waiting:
    """A Python caller in the native line; told from other threads how it went."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Predictions] = self._loop.create_future()

    def done(self, rows: Predictions | None, error: Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._settle, rows, error)

    def late(self) -> None:
        self.done(None, late())

    def overloaded(self, waiting: int, max_waiting: int, retry_after: float) -> None:
        self.done(None, overloaded(waiting, max_waiting, retry_after))

    def _settle(self, rows: Predictions | None, error: Exception | None) -> None:
        if self.future.done():
            return
        if rows is not None:
            self.future.set_result(rows)
        else:
            assert error is not None
            self.future.set_exception(error)


def late() -> DeadlinePassed:
    """As the batcher says it."""
    return DeadlinePassed("the deadline passed before the model could run")


def overloaded(waiting: int, max_waiting: int, retry_after: float) -> Overloaded:
    """As the batcher says it."""
    sentence = f"{waiting} images wait already; at most {max_waiting} may"
    return Overloaded(sentence, max(SHORTEST_RETRY, retry_after))


def _reflecting(names: Sequence[str]) -> Answer:
    """The standard reflection servicer, a message at a time."""
    servicer: Any = reflection.aio.ReflectionServicer(names)

    async def answer(request: bytes, _: float) -> bytes:
        async def once() -> Any:
            yield ServerReflectionRequest.FromString(request)

        replies = [reply async for reply in servicer.ServerReflectionInfo(once(), None)]
        return bytes(replies[0].SerializeToString())

    return answer

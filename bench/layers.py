"""python -m bench.layers: where the time of one image goes in this process, layer by layer, without gRPC around it.

Each line has all that the lines above it have. What a whole call costs a server, and one that does nothing, is in the
table of `python -m bench`: the difference of those two is this, and caches that gRPC has meanwhile filled with its own.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client import CollectorRegistry

from bench.messages import predict_request, sample_images
from bench.servers import MODEL
from service.__main__ import loop_factory
from service.batching.batcher import Batcher
from service.handlers.digits import DigitsHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.transports.grpcio.instrumentation import RpcInstrumentation
from service.transports.grpcio.streams import OpenStreams
from service.transports.grpcio.unsent_replies import UnsentReplies

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

IN_FLIGHT = 64
_ROUNDS, _CALLS = 7, 3200


class Context:
    """What a handler asks of grpcio's context, answered at once."""

    def __init__(self, message: bytes) -> None:
        self.message = message

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """As h2load sends it."""
        return (("user-agent", "h2load nghttp2"), ("te", "trailers"))

    async def read(self) -> bytes:
        """The message of the call."""
        return self.message

    def peer(self) -> str:
        """The client's address."""
        return "ipv4:127.0.0.1:1"


def layers() -> dict[str, Callable[[], Awaitable[object]]]:
    """From the inside out: each answers one image."""
    model, metrics, statistics_ = Model(MODEL), Metrics(CollectorRegistry()), Statistics()
    batcher = Batcher(model, metrics, statistics_, max_batch_size=1024, max_queued_images=65536)
    predict = DigitsHandler(Predictor(batcher, max_batch_size=1024)).predict
    observer = RpcInstrumentation(metrics, OpenStreams(), make_logger("json", "error"), UnsentReplies(0, bool))

    async def answer(request: bytes, _: Any) -> bytes:
        return await predict(request)

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    observed: Any = observer.wrap("digits.v1.DigitService", "Predict", handler)
    pixels, message = sample_images(1), predict_request(sample_images(1))
    context = Context(message)

    async def run() -> None:
        model.predict(pixels)

    async def nothing() -> None:
        pass

    return {
        "a task of the event loop": nothing,
        "model": run,
        "batcher": lambda: batcher.predict(pixels),
        "handler": lambda: predict(message),
        "observed": lambda: observed.stream_unary(None, context),
    }


async def measure(call: Callable[[], Awaitable[object]], at_once: int) -> float:
    """Microseconds a call, the median of several rounds."""
    took = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_CALLS // at_once):
            await asyncio.gather(*(call() for _ in range(at_once)))
        took.append((time.perf_counter() - began) / _CALLS * 1e6)
    return statistics.median(took)


async def main() -> None:
    """Print the table."""
    print(f"| layer | us, one at a time | us, {IN_FLIGHT} at once |\n|---|---|---|")
    for name, call in layers().items():
        print(f"| {name} | {await measure(call, 1):.1f} | {await measure(call, IN_FLIGHT):.1f} |")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())

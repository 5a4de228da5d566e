"""The native queue and transport with slow and failing models, in the process of the test."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, needs_native, until
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode, aio
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from service.errors import DeadlineExceeded, ModelUnavailable, Overloaded
from service.network import Parameters, Predictions
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.pb.inference import open_inference_pb2 as pb
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.limits import Limits
from service.transports.native.callbacks import PythonCallbacks
from service.transports.native.transport import NativeBatcher, NativeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = needs_native

PREDICT = "/digits.v1.DigitService/Predict"
STREAM = "/digits.v1.DigitService/PredictStream"
BOUNDS = [field.name for field in fields(Limits)]
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
IO_THREADS = int(os.environ.get("DIGITS_IO_THREADS", "1"))
"""The variable is also the default of servers in other processes."""


NO_PARAMETERS = Parameters(
    (np.zeros((16, 784), np.float32), np.zeros((16, 16), np.float32), np.zeros((10, 16), np.float32)),
    (np.zeros(16, np.float32), np.zeros(16, np.float32), np.zeros(10, np.float32)),
)


class Fake:
    """A model that waits for `gate`, fails on images that begin with 13 or 14, and returns the first pixel as digit."""

    info = SimpleNamespace(name="digits", version="1")
    parameters = NO_PARAMETERS

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.runs: list[list[int]] = []
        self.thread = ""

    def predict(self, pixels: np.ndarray) -> Predictions:
        assert pixels.dtype == np.uint8
        self.thread = threading.current_thread().name.rpartition("-")[0]  # without the number
        self.runs.append(pixels[:, 0].tolist())
        assert self.gate.wait(ANSWERS_WITHIN)
        if (pixels[:, 0] == 13).any():
            raise RuntimeError("secret")
        if (pixels[:, 0] == 14).any():
            raise ModelUnavailable("the device is gone")
        n = len(pixels)
        layers = (np.zeros((n, width), np.float32) for width in (10, 16, 16))
        return Predictions(pixels[:, 0].astype(np.int64), *layers)


class Running(SimpleNamespace):
    model: Fake
    batcher: NativeBatcher
    channel: aio.Channel
    registry: CollectorRegistry
    transport: NativeTransport
    port: int

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def predict(self, *digits: int, **options: Any) -> list[int]:
        reply = await self.channel.unary_unary(PREDICT)(request(*digits), timeout=10, **options)
        return list(PredictResponse.FromString(reply).digits)


@asynccontextmanager
async def running(**limits: Any) -> AsyncIterator[Running]:
    model, registry = Fake(), CollectorRegistry()
    sizes = {"max_queued_images": 100, "inline": 2, **limits}
    bounds = Limits(**{"max_batch_size": 8, **{name: sizes.pop(name) for name in BOUNDS if name in sizes}})
    queue = PipelineConfig(
        max_batch_size=bounds.max_batch_size,
        max_queued_images=sizes.pop("max_queued_images"),
        inline_images=sizes.pop("inline"),
    )
    telemetry = Telemetry(Metrics(registry), make_logger("json", "error"))
    pipeline = compose_pipeline(NativeBatcher, model, telemetry, queue, ServerInfo())  # type: ignore[arg-type]
    batcher = pipeline.batcher
    security = SecurityConfig(**{name: sizes.pop(name) for name in ("tls", "tokens") if name in sizes})
    io_threads = sizes.pop("io_threads", IO_THREADS)
    config = TransportConfig(limits=bounds, reflection=False, **sizes)
    transport = NativeTransport(pipeline.services, batcher, telemetry, config, security, io_threads=io_threads)
    port = await transport.start("127.0.0.1", 0)
    await transport.set_serving(True)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Running(model=model, batcher=batcher, channel=channel, registry=registry, transport=transport, port=port)
        model.gate.set()
    await transport.stop(5)


def fail_at_start(monkeypatch: pytest.MonkeyPatch, thread: str) -> None:
    """Let a thread of that name fail before it serves, without memory for its batches."""

    def allocate_batch(callbacks: PythonCallbacks, images: int) -> Any:
        if threading.current_thread().name == thread:
            raise MemoryError
        return allocate(callbacks, images)

    allocate = PythonCallbacks.allocate_batch
    monkeypatch.setattr(PythonCallbacks, "allocate_batch", allocate_batch)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)


def request(*digits: int) -> bytes:
    return PredictRequest(pixels=images(*digits).tobytes()).SerializeToString()


def images(*digits: int) -> np.ndarray:
    return np.repeat(np.array(digits, np.uint8), 784).reshape(-1, 784)


async def test_requests_that_arrive_while_the_model_is_busy_become_one_batch() -> None:
    async with running(io_threads=1) as server:
        server.model.gate.clear()
        first = asyncio.ensure_future(server.predict(1, 1, 1))
        await until(lambda: server.model.runs)
        rest = [asyncio.ensure_future(server.predict(digit, digit, digit)) for digit in (2, 3, 4)]
        await until(lambda: server.value("digits_queue_images") == 9)
        server.model.gate.set()
        assert await asyncio.gather(first, *rest) == [[digit] * 3 for digit in (1, 2, 3, 4)]
        # A run has at most 8 images, and no request is split.
        assert [len(run) for run in server.model.runs] == [3, 6, 3]


async def test_small_requests_do_not_wait_behind_a_large_one() -> None:
    async with running() as server:
        server.model.gate.clear()
        large = asyncio.ensure_future(server.predict(1, 1, 1))
        await until(lambda: server.model.runs)
        small = asyncio.ensure_future(server.predict(2))
        await until(lambda: [2] in server.model.runs)
        assert not large.done()
        server.model.gate.set()
        assert (await large, await small) == ([1, 1, 1], [2])


async def test_large_requests_have_their_own_thread_only_while_small_ones_arrive() -> None:
    async with running() as server:

        async def thread_of(*digits: int) -> str:
            assert await server.predict(*digits) == [*digits]
            return server.model.thread

        assert await thread_of(1, 2, 3) == "native-model"  # the first run, whose duration is unknown
        for handed_over in (False, True, False):
            for _ in range(20):  # a busy machine can delay the next call
                assert await thread_of(4) == "native"
                await asyncio.sleep(0 if handed_over else 0.15)
                if (await thread_of(1, 2, 3) == "native-model") == handed_over:
                    break
            else:
                pytest.fail(f"the thread of the next run was never as expected: {handed_over=}")


async def test_a_slow_model_runs_large_requests_on_their_own_thread() -> None:
    async with running() as server:
        server.model.gate.clear()
        first = asyncio.ensure_future(server.predict(1, 1, 1))
        await until(lambda: server.model.runs)
        await asyncio.sleep(0.15)
        server.model.gate.set()
        await first
        await asyncio.sleep(0.15)
        assert await server.predict(2, 2, 2) == [2, 2, 2]
        assert server.model.thread == "native-model"


async def test_a_failed_run_fails_only_its_own_requests_without_details() -> None:
    async with running() as server:
        assert await server.predict(5) == [5]
        with pytest.raises(aio.AioRpcError) as caught:
            await server.predict(13)
        assert (caught.value.code(), caught.value.details()) == (StatusCode.INTERNAL, "internal error")
        assert await server.predict(6) == [6]
        labels = {"grpc_type": "unary", "grpc_service": "digits.v1.DigitService", "grpc_method": "Predict"}
        assert server.value("grpc_server_handled_total", grpc_code="Internal", **labels) == 1


async def test_a_full_queue_rejects_with_a_retry_delay() -> None:
    async with running(io_threads=1, max_queued_images=4) as server:
        server.model.gate.clear()
        calls = [asyncio.ensure_future(server.predict(1, 1, 1))]
        await until(lambda: server.model.runs)
        calls.append(asyncio.ensure_future(server.predict(2, 2, 2)))
        await until(lambda: server.value("digits_queue_images") == 3)
        with pytest.raises(aio.AioRpcError) as caught:
            await server.predict(3, 3, 3)
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "queue full: 3 images queued, limit 4"
        retry = RetryInfo()
        assert rpc_status.from_call(caught.value).details[0].Unpack(retry)
        assert retry.retry_delay.nanos >= 10_000_000
        with pytest.raises(Overloaded, match="queue full: 3 images queued, limit 4"):
            await server.batcher.predict(images(4, 4, 4))
        server.model.gate.set()
        assert await asyncio.gather(*calls) == [[1, 1, 1], [2, 2, 2]]
        assert server.value("digits_requests_dropped_total", reason="overloaded") == 2


async def test_cancelled_and_expired_requests_do_not_run() -> None:
    async with running(io_threads=1) as server:
        server.model.gate.clear()
        first = asyncio.ensure_future(server.predict(1, 1, 1))
        await until(lambda: server.model.runs)
        gone = server.channel.unary_unary(PREDICT)(request(2, 2, 2))
        late = asyncio.ensure_future(server.batcher.predict(images(3, 3, 3), time.monotonic() + 0.5))
        await until(lambda: server.value("digits_queue_images") == 6)
        gone.cancel()
        await asyncio.sleep(0.7)
        server.model.gate.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
        assert server.model.runs == [[1, 1, 1]]
        assert server.value("digits_requests_dropped_total", reason="cancelled") == 1
        assert server.value("digits_requests_dropped_total", reason="deadline") == 1


async def test_python_handlers_use_the_same_queue() -> None:
    async with running() as server:
        results = await asyncio.gather(*(server.batcher.predict(images(i)) for i in range(5)))
        assert [result.digit.tolist() for result in results] == [[i] for i in range(5)]
        with pytest.raises(RuntimeError, match="secret"):
            await server.batcher.predict(images(13))


async def test_a_stream_is_batched_and_answered_in_order() -> None:
    async with running(inline=0) as server:
        server.model.gate.clear()
        stream = server.channel.stream_stream(STREAM)()
        await stream.write(request(0))
        await until(lambda: server.model.runs)
        for digit in range(1, 7):
            await stream.write(request(digit))
        await until(lambda: server.value("digits_queue_images") == 6)
        server.model.gate.set()
        await stream.done_writing()
        assert [list(PredictResponse.FromString(raw).digits) async for raw in stream] == [[i] for i in range(7)]
        assert server.model.runs == [[0], [1, 2, 3, 4, 5, 6]]


async def test_a_run_without_a_device_is_an_error_with_the_request_id_or_ends_the_stream() -> None:
    async with running() as server:
        stream = server.channel.stream_stream(INFER_STREAM)
        expected = pb.ModelInferResponse(id="14")
        expected.parameters["triton_final_response"].bool_param = True
        [reply] = [pb.ModelStreamInferResponse.FromString(raw) async for raw in stream(iter([infer_request(14)]))]
        assert (reply.error_message, reply.infer_response) == ("the device is gone", expected)
        with pytest.raises(aio.AioRpcError) as caught:
            [raw async for raw in stream(iter([infer_request(14)]), metadata=[("triton_grpc_error", "true")])]
        assert (caught.value.code(), caught.value.details()) == (StatusCode.UNAVAILABLE, "the device is gone")


def infer_request(digit: int) -> bytes:
    message = pb.ModelInferRequest(model_name="digits", id=str(digit))
    message.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
    message.raw_input_contents.append(images(digit).tobytes())
    return message.SerializeToString()


async def test_a_failed_run_ends_a_stream_of_either_protocol() -> None:
    async with running() as server:
        message = pb.ModelInferRequest(model_name="digits", raw_input_contents=[images(13).tobytes()])
        message.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
        for path, sent in ((STREAM, request(13)), (INFER_STREAM, message.SerializeToString())):
            stream = server.channel.stream_stream(path)()
            await stream.write(sent)
            with pytest.raises(aio.AioRpcError) as caught:
                await stream.read()
            assert (caught.value.code(), caught.value.details()) == (StatusCode.INTERNAL, "internal error")


async def test_reading_from_a_client_that_does_not_read_is_bounded() -> None:
    async with running() as server:
        stream = server.channel.stream_stream(STREAM)()
        message = request(*[1] * 8)
        for _ in range(50_000):
            write = asyncio.ensure_future(stream.write(message))
            if not (await asyncio.wait({write}, timeout=1))[0]:
                break
            write.result()
        else:
            pytest.fail("the server continues to read")
        stream.cancel()
        await asyncio.wait({write})
        assert await server.predict(4) == [4]

"""Shared memory without Python on the native transport: replies and errors are those of the Python handler."""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, needs_native, until
from grpc import StatusCode, aio
from prometheus_client import CollectorRegistry
from test_shared_memory import OTHER, SHM, make_object, place, request_from

from service.handlers.shared_memory import SharedMemoryRegions
from service.inference.model import Model
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.pb.inference import open_inference_pb2 as pb
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.limits import Limits
from service.transports.native.callbacks import PythonCallbacks
from service.transports.native.transport import NativeBatcher, NativeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import numpy.typing as npt

__all__ = ["make_object"]  # the fixture
pytestmark = [needs_native, pytest.mark.skipif(not SHM.is_dir(), reason="no /dev/shm: expected Linux")]

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
OUTPUTS = {"digit": 8, "activations": 40, "layer2": 64}
"""The outputs of a request, and their bytes for each image."""


class GatedModel(Model):
    """The real model. Python's runs wait while `gate` is closed; runs in Rust do not."""

    def __init__(self, path: Path) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.runs = 0
        super().__init__(path)

    def predict(self, pixels: Any) -> Any:
        self.runs += 1
        assert self.gate.wait(ANSWERS_WITHIN)
        return super().predict(pixels)


class PythonModel(GatedModel):
    """The same without a session in Rust, as on a device."""

    @property
    def float_graph(self) -> Any:
        return None


@pytest.fixture
def python_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The RPCs whose messages Rust passes to a Python handler."""
    calls: list[str] = []
    call_handler = PythonCallbacks.call_handler

    def record(callbacks: PythonCallbacks, path: str, *arguments: Any) -> None:
        calls.append(path)
        call_handler(callbacks, path, *arguments)

    monkeypatch.setattr(PythonCallbacks, "call_handler", record)
    return calls


def file_size(path: Path) -> int:
    return path.stat().st_size


class Running(SimpleNamespace):
    """A server in this process, whose large lane has one thread, and a client of it over loopback."""

    model: GatedModel
    batcher: NativeBatcher
    channel: aio.Channel

    def infer(self, request: pb.ModelInferRequest) -> Any:
        """Start a call; await it for the bytes of its reply."""
        method: Any = self.channel.unary_unary(INFER)
        return method(request.SerializeToString(), timeout=ANSWERS_WITHIN)

    async def call(self, name: str, request: Any) -> None:
        path = f"/inference.GRPCInferenceService/SystemSharedMemory{name}"
        await self.channel.unary_unary(path)(request.SerializeToString(), timeout=ANSWERS_WITHIN)

    async def register(self, name: str, path: Path, offset: int = 0) -> None:
        size = file_size(path) - offset
        request = pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{path.name}", offset=offset, byte_size=size)
        await self.call("Register", request)

    async def unregister(self, name: str) -> None:
        await self.call("Unregister", pb.SystemSharedMemoryUnregisterRequest(name=name))

    def queued(self) -> int:
        return int(self.batcher.server.model_metrics()["queued_images"])


@asynccontextmanager
async def running(model: GatedModel, inline: int = 128) -> AsyncIterator[Running]:
    telemetry, regions = Telemetry(Metrics(CollectorRegistry()), make_logger("json", "error")), SharedMemoryRegions()
    queue = PipelineConfig(max_batch_size=1024, max_queued_images=4096, inline_images=inline)
    pipeline = compose_pipeline(NativeBatcher, model, telemetry, queue, ServerInfo(regions=regions))
    config = TransportConfig(limits=Limits(max_batch_size=1024), reflection=False)
    security = SecurityConfig()
    transport = NativeTransport(pipeline.services, pipeline.batcher, telemetry, config, security, regions=regions)
    port = await transport.start("127.0.0.1", 0)
    await transport.set_serving(True)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Running(model=model, batcher=pipeline.batcher, channel=channel)
        model.gate.set()
    await transport.stop(5)
    regions.close()


@asynccontextmanager
async def queueing(server: Running) -> AsyncIterator[None]:
    """Requests wait in the queue, behind a run of Python, until the end of the block."""
    floats = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(4 * 784)])
    floats.inputs.add(name="pixels", datatype="FP32", shape=[1, 784])
    server.model.gate.clear()
    runs = server.model.runs
    first = server.infer(floats)
    await until(lambda: server.model.runs > runs)
    try:
        yield
    finally:
        server.model.gate.set()
    await first


@pytest.fixture(params=[GatedModel, PythonModel])
def model(model_path: Path, request: pytest.FixtureRequest) -> GatedModel:
    """Run in Rust, and run by Python."""
    found: GatedModel = request.param(model_path)
    return found


def in_python(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """The same request with a parameter that has no effect, which is left to the Python handler."""
    copy = pb.ModelInferRequest.FromString(request.SerializeToString())
    copy.parameters["none"].bool_param = True
    return copy


def raw_request(pixels: npt.NDArray[np.uint8]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits", id="b", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    return request


def add_outputs(request: pb.ModelInferRequest, images: int, placed: set[str]) -> None:
    """Request all outputs, these of them in the region `target`."""
    offset = 0
    for name, width in OUTPUTS.items():
        output = request.outputs.add(name=name)
        if name in placed:
            place(output, "target", images * width, offset)
        offset += images * width


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def noise(images: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(images).integers(0, 256, (images, 784), np.uint8)


async def fails(reply: Any, message: str, code: StatusCode = StatusCode.INVALID_ARGUMENT) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await reply
    assert (caught.value.code(), caught.value.details()) == (code, message)


@pytest.mark.parametrize("placed", [set(), {"digit"}, {*OUTPUTS}], ids=["none", "digit", "all"])
@pytest.mark.parametrize("source", ["request", "region"])
@pytest.mark.parametrize("images", [1, 128, 129, 1024])
async def test_a_reply_has_the_bytes_of_the_python_handlers_without_a_call_of_it(
    model: GatedModel,
    make_object: Callable[[bytes], Path],
    python_calls: list[str],
    images: int,
    source: str,
    placed: set[str],
) -> None:
    pixels, blank = noise(images), b"\xff" * images * sum(OUTPUTS.values())
    target = make_object(blank)
    async with running(model) as server:
        await server.register("source", make_object(bytes(100) + pixels.tobytes()), offset=60)
        await server.register("target", target)
        request = raw_request(pixels) if source == "request" else request_from("source", images, offset=40)
        add_outputs(request, images, placed)
        python_calls.clear()
        reply, written = await server.infer(request), target.read_bytes()
        assert python_calls == []
        target.write_bytes(blank)
        expected = await server.infer(in_python(request))
        assert python_calls == [INFER]
    assert (reply, written) == (expected, target.read_bytes())
    assert (written != blank) == bool(placed)


async def test_a_stream_uses_regions_without_python(
    model: GatedModel, make_object: Callable[[bytes], Path], python_calls: list[str]
) -> None:
    async with running(model) as server:
        await server.register("source", make_object(noise(3).tobytes()))
        await server.register("target", make_object(bytes(1000)))
        request = request_from("source", 3)
        add_outputs(request, 3, {"digit"})
        python_calls.clear()
        replies = []
        for message in (request, in_python(request)):
            method: Any = server.channel.stream_stream(STREAM)
            stream = method(iter([message.SerializeToString()]), timeout=ANSWERS_WITHIN)
            replies.append([reply async for reply in stream])
            assert len(python_calls) == len(replies) - 1
    assert len(replies[0]) == 1
    assert replies[0] == replies[1]


async def test_an_input_that_is_truncated_while_it_is_queued_fails_alone(
    model: GatedModel, make_object: Callable[[bytes], Path], python_calls: list[str]
) -> None:
    good, short = make_object(noise(100).tobytes()), make_object(noise(150).tobytes())
    async with running(model, inline=0) as server:
        await server.register("good", good)
        await server.register("short", short)
        before = await server.infer(request_from("good", 100))
        async with queueing(server):
            python_calls.clear()
            requests = [request_from("good", 100), request_from("short", 150), request_from("good", 100)]
            replies = [server.infer(request) for request in requests]
            await until(lambda: server.queued() == 350)
            os.truncate(short, 120 * 784 + 1)
        await fails(replies[1], f"pixels: has {120 * 784 + 1} bytes in 'short'; expected {150 * 784}")
        assert [await replies[0], await replies[2]] == [before, before]
        assert python_calls == []
        await fails(
            server.infer(request_from("short", 150)),  # found short on arrival, so by the Python handler
            f"pixels: has {120 * 784 + 1} bytes in 'short'; expected {150 * 784}",
        )
        assert python_calls == [INFER]


async def test_a_batch_of_truncated_inputs_alone_fails_them(
    model: GatedModel, make_object: Callable[[bytes], Path]
) -> None:
    short = make_object(noise(2).tobytes())
    async with running(model, inline=0) as server:
        await server.register("short", short)
        async with queueing(server):
            replies = [server.infer(request_from("short", 2)) for _ in range(2)]
            await until(lambda: server.queued() == 4)
            os.truncate(short, 0)
        for reply in replies:
            await fails(reply, "pixels: has 0 bytes in 'short'; expected 1568")
        os.truncate(short, 1568)
        assert await server.infer(request_from("short", 2))


async def test_an_output_that_is_truncated_while_its_request_is_queued_is_not_written(
    model: GatedModel, make_object: Callable[[bytes], Path]
) -> None:
    target = make_object(bytes(8))
    async with running(model, inline=0) as server:
        await server.register("target", target)
        request = raw_request(noise(1))
        place(request.outputs.add(name="digit"), "target", 8)
        async with queueing(server):
            reply = server.infer(request)
            await until(lambda: server.queued() == 1)
            os.truncate(target, 7)
        await fails(reply, "digit: is beyond the end of 'target', which has been truncated")
        assert target.stat().st_size == 7


async def test_a_region_that_is_unregistered_while_its_request_is_queued_is_read_but_not_written(
    model: GatedModel, make_object: Callable[[bytes], Path], python_calls: list[str]
) -> None:
    source, target = make_object(noise(1).tobytes()), make_object(bytes(8))
    async with running(model, inline=0) as server:
        await server.register("source", source)
        await server.register("target", target)
        read, written = request_from("source", 1), request_from("source", 1)
        place(written.outputs.add(name="digit"), "target", 8)
        expected = await server.infer(read)
        handles = descriptors()
        async with queueing(server):
            replies = [server.infer(read), server.infer(written)]
            await until(lambda: server.queued() == 2)
            await server.unregister("")
        assert await replies[0] == expected
        await fails(replies[1], "digit: names 'target', which is no region; register it first")
        assert target.read_bytes() == bytes(8)
        assert descriptors() == handles - 4, "two descriptors for each region"
        python_calls.clear()
        await fails(server.infer(read), "pixels: names 'source', which is no region; register it first")
        assert python_calls == [INFER]


async def test_a_region_of_another_user_is_none(model: GatedModel, make_object: Callable[[bytes], Path]) -> None:
    path = make_object(noise(1).tobytes())
    async with running(model) as server:
        with path.open("r+b") as file:
            server.batcher.server.add_region(OTHER, "theirs", file.fileno(), 0, 784)
        await fails(
            server.infer(request_from("theirs", 1)), "pixels: names 'theirs', which is no region; register it first"
        )
        server.batcher.server.remove_region(OTHER, "theirs")

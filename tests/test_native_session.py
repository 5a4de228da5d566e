"""The native transport's session of the model: equal to Python's, replaced with it, and optional."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import needs_native, until
from grpc import aio
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from service.inference.model import Model
from service.inference.onnx_outputs import with_float_input
from service.inference.sessions import TOLERANCE
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.observability.telemetry import Telemetry
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.limits import Limits
from service.transports.native import session as native_session
from service.transports.native.session import find_library, load_session
from service.transports.native.transport import NativeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PREDICT = "/digits.v1.DigitService/Predict"


class CountedModel(Model):
    """The real model; `threads` are the threads on which Python ran it."""

    def __init__(self, path: Path) -> None:
        self.threads: list[str] = []
        super().__init__(path)

    def predict(self, pixels: np.ndarray) -> Any:
        self.threads.append(threading.current_thread().name)
        return super().predict(pixels)


@asynccontextmanager
async def running(model: Model) -> AsyncIterator[SimpleNamespace]:
    telemetry = Telemetry(Metrics(CollectorRegistry()), make_logger("json", "error"))
    queue = PipelineConfig(max_batch_size=1024, max_queued_images=4096, inline_images=128)
    pipeline = compose_pipeline(native_batcher(), model, telemetry, queue, ServerInfo())
    config = TransportConfig(limits=Limits(max_batch_size=1024), reflection=False)
    transport = NativeTransport(pipeline.services, pipeline.batcher, telemetry, config, SecurityConfig())
    port = await transport.start("127.0.0.1", 0)
    await transport.set_serving(True)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield SimpleNamespace(batcher=pipeline.batcher, server=pipeline.batcher.server, channel=channel)
    await transport.stop(5)


def native_batcher() -> Any:
    return import_module("service.transports.native.transport").NativeBatcher


async def predict(channel: aio.Channel, pixels: np.ndarray) -> PredictResponse:
    request = PredictRequest(pixels=pixels.tobytes(), include_hidden_layers=True).SerializeToString()
    return PredictResponse.FromString(await channel.unary_unary(PREDICT)(request, timeout=60))


def noise(images: int) -> np.ndarray:
    return np.random.default_rng(images).integers(0, 256, (images, 784), np.uint8)


def test_the_model_with_float_input_gives_the_same_results(model_path: Path) -> None:
    expected = onnx.load(model_path)
    expected.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    assert onnx.load_from_string(with_float_input(model_path.read_bytes())) == expected


@needs_native
async def test_no_batch_runs_in_python_and_any_size_has_the_answers_of_python(model_path: Path) -> None:
    model = CountedModel(model_path)
    async with running(model) as server:
        assert server.server.has_session
        model.threads.clear()
        for images in (1, 2, 127, 128, 129, 300, 1024):
            pixels = noise(images)
            reply = await predict(server.channel, pixels)
            assert model.threads == []
            expected = Model(model_path).predict(pixels)
            assert list(reply.digits) == expected.digit.tolist()
            for values, layer in (
                (reply.activations, "activations"),
                (reply.layer1, "layer1"),
                (reply.layer2, "layer2"),
            ):
                np.testing.assert_allclose(np.ravel(values), getattr(expected, layer).ravel(), TOLERANCE, TOLERANCE)


@needs_native
async def test_a_python_handler_gets_pythons_predictions(model_path: Path) -> None:
    model = CountedModel(model_path)
    async with running(model) as server:
        pixels = noise(3)
        predictions = await server.batcher.predict(pixels)
        assert np.array_equal(predictions.activations, Model(model_path).predict(pixels).activations)


@needs_native
async def test_another_model_gets_another_session(model_path: Path) -> None:
    async with running(CountedModel(model_path)) as server:
        model = CountedModel(model_path)
        server.batcher.swap(model, Statistics())
        await until(lambda: server.server.has_session)
        model.threads.clear()
        assert len((await predict(server.channel, noise(2))).digits) == 2
        assert model.threads == []


@needs_native
async def test_a_session_is_not_given_to_a_later_model(model_path: Path) -> None:
    earlier = CountedModel(model_path)
    async with running(earlier) as server:
        later: Any = SimpleNamespace(info=earlier.info, parameters=earlier.parameters, predict=earlier.predict)
        server.batcher.swap(later, Statistics())
        session = load_session(earlier, CapturingLogger())  # type: ignore[arg-type]
        server.server.set_session(earlier, session)
        assert not server.server.has_session


@needs_native
@pytest.mark.parametrize("failure", ["no library", "no model", "another model"])
async def test_without_a_session_python_runs_the_model_and_the_reason_is_logged(
    model_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, log = CountedModel(model_path), CapturingLogger()
    graph = model.float_graph
    assert graph is not None
    if failure == "no library":
        monkeypatch.setattr(native_session, "find_spec", lambda _: None)
    elif failure == "no model":
        monkeypatch.setattr(CountedModel, "float_graph", graph[:-100])
    else:
        other = onnx.load_from_string(graph)
        weights = next(one for one in other.graph.initializer if one.name == "W3")
        weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * np.float32(1.001), "W3"))
        monkeypatch.setattr(CountedModel, "float_graph", other.SerializeToString())
    assert load_session(model, log) is None  # type: ignore[arg-type]
    [call] = log.calls
    assert (call.method_name, call.args) == ("warning", ("model runs in Python",))
    if failure == "another model":
        assert call.kwargs["reason"].startswith("onnxruntime: activations of 1 images differs")
    async with running(model) as server:
        assert not server.server.has_session
        model.threads.clear()
        assert len((await predict(server.channel, noise(2))).digits) == 2
        assert model.threads == ["native-0"]


@needs_native
def test_the_library_is_that_of_the_installed_package() -> None:
    assert find_library().is_relative_to(Path(onnxruntime.__file__).parent)


def test_a_model_on_a_device_has_no_graph_for_a_session_on_the_cpu(model_path: Path) -> None:
    class Sessions:
        def create(self, content: bytes, _: Any) -> Any:
            return Model(model_path)._session if content else None

    assert Model(model_path).float_graph is not None
    assert Model(model_path, sessions=Sessions()).float_graph is None  # type: ignore[arg-type]

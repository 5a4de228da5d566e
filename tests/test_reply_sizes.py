"""The reply to every valid request is within the default limit of a gRPC client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, on_both_transports
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.errors import InvalidInput
from service.handlers.digits import DigitsHandler
from service.handlers.inference import InferenceHandler
from service.handlers.metadata import MetadataHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.pb.digits.v1.digits_pb2 import ExplainRequest, Neuron, PredictRequest
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ServiceProcess

DEFAULT_LIMIT = 4 * 2**20
"""The default limit of a gRPC client, in bytes of a message."""

BATCH = 1024
PIXELS = bytes(784 * BATCH)
NEURONS = [(layer, index) for layer, size in ((1, 16), (2, 16), (3, 10)) for index in range(size)]
DIGITS, INFERENCE = "digits.v1.DigitService", "inference.GRPCInferenceService"


def explain(images: int, neurons: list[tuple[int, int]]) -> bytes:
    asked = [Neuron(layer=layer, index=index) for layer, index in neurons]
    return ExplainRequest(pixels=PIXELS[: 784 * images], neurons=asked).SerializeToString()


def infer(*, typed: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits", id="i" * 100)
    tensor = request.inputs.add(name="pixels", datatype="UINT8", shape=[BATCH, 784])
    if typed:
        tensor.contents.uint_contents.extend([255] * (784 * BATCH))
    else:
        request.raw_input_contents.append(PIXELS)
    return request


LARGEST = {
    ("Predict", "hidden layers"): PredictRequest(pixels=PIXELS, include_hidden_layers=True).SerializeToString(),
    ("Explain", "the digit read"): explain(1024, []),
    ("Explain", "one neuron"): explain(1024, NEURONS[-1:]),
    ("Explain", "one of layer 1"): explain(512, NEURONS[:1]),
    ("Explain", "layer 1"): explain(32, NEURONS[:16]),
    ("Explain", "layer 2"): explain(64, NEURONS[16:32]),
    ("Explain", "all"): explain(17, NEURONS),
    ("GetNetwork", ""): b"",
    ("ModelInfer", "raw"): infer(typed=False).SerializeToString(),
    ("ModelInfer", "typed"): infer(typed=True).SerializeToString(),
    ("ModelMetadata", ""): pb.ModelMetadataRequest(name="digits").SerializeToString(),
    ("ModelConfig", ""): pb.ModelConfigRequest(name="digits").SerializeToString(),
    ("ModelReady", ""): pb.ModelReadyRequest(name="digits").SerializeToString(),
    **{(name, ""): b"" for name in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex")},
}


@pytest.fixture(scope="module")
def handlers(model_path: Path) -> tuple[DigitsHandler, InferenceHandler, Statistics]:
    statistics = Statistics()
    batcher = Batcher(
        Model(model_path), Metrics(CollectorRegistry()), statistics, max_batch_size=BATCH, max_queued_images=BATCH
    )
    predictor = Predictor(batcher, max_batch_size=BATCH)
    metadata = MetadataHandler(predictor, is_serving=lambda: True, server_version="0")
    return DigitsHandler(predictor), InferenceHandler(predictor, metadata), statistics


def test_the_largest_request_of_every_rpc_has_a_reply_within_the_default_limit(
    handlers: tuple[DigitsHandler, InferenceHandler, Statistics],
) -> None:
    digits, inference, statistics = handlers
    rpcs = {**digits.unary, **inference.unary}
    sizes = {(name, what): len(asyncio.run(rpcs[name](raw, float("inf")))) for (name, what), raw in LARGEST.items()}
    for images in range(1, 65537):  # all sizes of batches that a server can have run
        statistics.record_run(images, 2**40)
    sizes["ModelStatistics", "all sizes"] = len(asyncio.run(rpcs["ModelStatistics"](b"", float("inf"))))
    assert {size: what for what, size in sizes.items() if size > DEFAULT_LIMIT} == {}
    refuse = {"RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"}
    assert {name for name, _ in sizes} == {
        name for name in rpcs if name not in refuse and "SharedMemory" not in name
    }, "an RPC is missing in the table"


@given(images=st.integers(1, BATCH), neurons=st.lists(st.sampled_from(NEURONS), unique=True, max_size=42))
def test_an_explanation_is_rejected_or_fits(
    handlers: tuple[DigitsHandler, InferenceHandler, Statistics], images: int, neurons: list[tuple[int, int]]
) -> None:
    try:
        reply = asyncio.run(handlers[0].explain(explain(images, neurons)))
    except InvalidInput as error:
        assert "expected at most 1024, which keeps the reply below 4 MiB" in str(error)
    else:
        assert len(reply) <= DEFAULT_LIMIT


@on_both_transports
def test_clients_with_default_settings_receive_the_largest_replies(server: ServiceProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for (name, what), raw in LARGEST.items():
            if name in ("Predict", "Explain", "GetNetwork", "ModelInfer"):
                service = INFERENCE if name == "ModelInfer" else DIGITS
                call: Any = channel.unary_unary(f"/{service}/{name}")
                assert call(raw, timeout=ANSWERS_WITHIN), what
        reflect: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        for symbol in (DIGITS, INFERENCE):
            asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)]
            [reply] = reflect(iter(asked), timeout=ANSWERS_WITHIN)
            assert 0 < np.sum([len(file) for file in reply.file_descriptor_response.file_descriptor_proto]) < 2**20

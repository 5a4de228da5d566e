"""Batches of messages of a ModelStreamInfer stream, without a transport."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.handlers.inference import InferenceHandler
from service.handlers.metadata import MetadataHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

MAX_BATCH_SIZE = 64
OUTPUTS = ("activations", "digit", "layer1", "layer2")


@pytest.fixture(scope="module")
def handler(model_path: Path) -> InferenceHandler:
    batcher = Batcher(
        Model(model_path),
        Metrics(CollectorRegistry()),
        Statistics(),
        max_batch_size=MAX_BATCH_SIZE,
        max_queued_images=1000,
    )
    predictor = Predictor(batcher, max_batch_size=MAX_BATCH_SIZE)
    return InferenceHandler(predictor, MetadataHandler(predictor, is_serving=lambda: True, server_version="0"))


def message(images: int = 1, *, seed: int = 0, typed: bool = False, outputs: Any = (), **fields: Any) -> bytes:
    request = pb.ModelInferRequest(**{"model_name": "digits", **fields})
    pixels = np.random.default_rng(seed).integers(0, 256, (images, 784), np.uint8)
    tensor = request.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    if typed:
        tensor.contents.uint_contents.extend(pixels.ravel().tolist())
    else:
        request.raw_input_contents.append(pixels.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request.SerializeToString()


def floats(reply: pb.ModelInferResponse) -> list[float]:
    """Return the activations, raw or typed."""
    at = [tensor.name for tensor in reply.outputs].index("activations")
    if reply.raw_output_contents:
        return list(np.frombuffer(reply.raw_output_contents[at], "<f4"))
    return list(reply.outputs[at].contents.fp32_contents)


MESSAGES: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    images=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    typed=st.booleans(),
    outputs=st.sampled_from([(), OUTPUTS, ("activations",), ("digit", "activations")]),
    id=st.text(max_size=5),
)


@given(messages=st.lists(MESSAGES, min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_each_message_of_a_batch_gets_the_reply_that_it_gets_alone(
    handler: InferenceHandler, messages: list[dict[str, Any]]
) -> None:
    requests = [message(**fields) for fields in messages]
    replies = handler.infer_batch(requests)
    assert replies is not None
    for request, raw in zip(requests, replies, strict=True):
        found = pb.ModelStreamInferResponse.FromString(raw).infer_response
        alone = pb.ModelStreamInferResponse.FromString(asyncio.run(handler.infer_in_stream(request))).infer_response
        assert (found.id, found.model_name, found.model_version) == (alone.id, alone.model_name, alone.model_version)
        assert [(out.name, out.datatype, [*out.shape]) for out in found.outputs] == [
            (out.name, out.datatype, [*out.shape]) for out in alone.outputs
        ]
        np.testing.assert_allclose(floats(found), floats(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        b"\xff\xff",
        message(model_name="letters"),
        message(model_version="2"),
        message(outputs=["digit", "digit"]),
        message(images=MAX_BATCH_SIZE + 1),
        pb.ModelInferRequest(model_name="digits").SerializeToString(),
    ],
)
def test_an_invalid_message_prevents_a_batch(handler: InferenceHandler, other: bytes) -> None:
    assert handler.infer_batch([message(), other, message()]) is None
    assert handler.infer_batch([message()] * 3) is not None


def test_an_expired_timeout_prevents_a_batch(handler: InferenceHandler) -> None:
    hurried = pb.ModelInferRequest.FromString(message())
    hurried.parameters["timeout"].int64_param = 1
    patient = pb.ModelInferRequest.FromString(message())
    patient.parameters["timeout"].int64_param = 60_000_000
    assert handler.infer_batch([message()] * 3, deadline=0.0) is None
    assert handler.infer_batch([message(), hurried.SerializeToString(), *[message(images=9)] * 7]) is None
    assert handler.infer_batch([message(), patient.SerializeToString()]) is not None

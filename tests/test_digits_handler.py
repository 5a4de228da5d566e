"""The replies and errors of digits.v1 for any bytes, without a transport."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gated_model import Held
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.errors import InvalidInput, ModelNotFound, ServiceError
from service.handlers.digits import DigitsHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse

if TYPE_CHECKING:
    from pathlib import Path

MAX_BATCH_SIZE = 64


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return Model(model_path)


@pytest.fixture(scope="module")
def handler(model: Model) -> DigitsHandler:
    statistics, metrics = Statistics(), Metrics(CollectorRegistry())
    batcher = Batcher(
        model, metrics, statistics, max_batch_size=MAX_BATCH_SIZE, max_queued_images=1000, inline=MAX_BATCH_SIZE
    )
    return DigitsHandler(Predictor(batcher, max_batch_size=MAX_BATCH_SIZE))


def predict(handler: DigitsHandler, request: bytes) -> PredictResponse:
    return PredictResponse.FromString(asyncio.run(handler.predict(request)))


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_reply_has_the_predictions_of_the_model(handler: DigitsHandler, model: Model, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, MAX_BATCH_SIZE))
    hidden = data.draw(st.booleans())
    pixels = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(0, 256, (n, 784), np.uint8)
    reply = predict(handler, PredictRequest(pixels=pixels.tobytes(), include_hidden_layers=hidden).SerializeToString())
    expected = model.predict(pixels)
    assert list(reply.digits) == expected.digit.tolist()
    assert list(reply.activations) == expected.activations.ravel().tolist()
    assert reply.model_version == "1"
    assert list(reply.layer1) == (expected.layer1.ravel().tolist() if hidden else [])
    assert list(reply.layer2) == (expected.layer2.ravel().tolist() if hidden else [])


def test_the_reply_contains_reliability_on_request(handler: DigitsHandler, digits: np.ndarray) -> None:
    pixels = np.concatenate([digits[:3], 255 - digits[3:4], np.zeros((1, 784), np.uint8)])
    request = PredictRequest(pixels=pixels.tobytes())
    plain = predict(handler, request.SerializeToString())
    assert (len(plain.second_digits), len(plain.sure), len(plain.in_distribution)) == (0, 0, 0)
    request.include_reliability = True
    reply = predict(handler, request.SerializeToString())
    activations = np.reshape(reply.activations, (-1, 10))
    order = np.argsort(-activations, axis=1, kind="stable")
    assert reply.second_digits == order[:, 1].tolist()
    assert [score > 0 for score in reply.in_distribution] == [True, True, True, False, False]
    top, second = np.take_along_axis(activations, order[:, :2], axis=1).T
    in_form = np.array(reply.in_distribution) > 0
    assert reply.sure == ((top >= 0.6) & (second <= 0.2) & in_form).tolist()


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_each_message_of_a_batch_gets_the_reply_that_it_gets_alone(
    handler: DigitsHandler, sizes: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    requests = [PredictRequest(pixels=rng.bytes(784 * size)).SerializeToString() for size in sizes]
    replies = handler.predict_batch(requests)
    assert replies is not None
    for request, raw in zip(requests, replies, strict=True):
        reply, alone = PredictResponse.FromString(raw), predict(handler, request)
        assert reply.digits == alone.digits
        assert reply.model_version == alone.model_version
        np.testing.assert_allclose(reply.activations, alone.activations, rtol=0, atol=1e-6)
        assert reply.SerializeToString() == raw


@pytest.mark.parametrize(
    "other",
    [
        b"",
        b"\xff\xff",
        PredictRequest(pixels=bytes(785)).SerializeToString(),
        PredictRequest(pixels=bytes(784), include_hidden_layers=True).SerializeToString(),
        PredictRequest(pixels=bytes(784), model_version="2").SerializeToString(),
    ],
)
def test_a_message_off_the_fast_path_prevents_a_batch(handler: DigitsHandler, other: bytes) -> None:
    plain = PredictRequest(pixels=bytes(784)).SerializeToString()
    assert handler.predict_batch([plain, other, plain]) is None
    assert handler.predict_batch([plain] * 3, deadline=0.0) is None


def test_a_failed_run_of_a_batch_counts_a_failure_for_each_message(model: Model) -> None:
    held, statistics = Held(model), Statistics()
    held.go.set()
    held.fail = {3}
    batcher = Batcher(
        held, Metrics(CollectorRegistry()), statistics, max_batch_size=MAX_BATCH_SIZE, max_queued_images=1000
    )
    handler = DigitsHandler(Predictor(batcher, max_batch_size=MAX_BATCH_SIZE))
    request = PredictRequest(pixels=bytes(784)).SerializeToString()
    with pytest.raises(RuntimeError, match="device lost"):
        handler.predict_batch([request] * 3)
    assert (statistics.fail.count, statistics.success.count) == (3, 0)
    assert handler.predict_batch([request] * 2) is not None
    assert (statistics.fail.count, statistics.success.count) == (3, 2)


def test_the_packed_reply_equals_that_of_protobuf(handler: DigitsHandler) -> None:
    request = PredictRequest(pixels=bytes(784 * 20), include_hidden_layers=True).SerializeToString()
    raw = asyncio.run(handler.predict(request))
    assert PredictResponse.FromString(raw).SerializeToString() == raw


@given(request=st.binary(max_size=2000))
@settings(max_examples=300, deadline=None)
def test_any_bytes_get_a_reply_or_a_service_error(handler: DigitsHandler, request: bytes) -> None:
    try:
        predict(handler, request)
    except ServiceError as error:
        assert isinstance(error, InvalidInput | ModelNotFound)


@given(pixels=st.binary(max_size=3000), hidden=st.booleans(), version=st.sampled_from(["", "1", "2", "\u2603"]))
@settings(max_examples=300, deadline=None)
def test_any_field_values_get_a_reply_or_an_error_that_names_the_field(
    handler: DigitsHandler, pixels: bytes, hidden: bool, version: str
) -> None:
    request = PredictRequest(pixels=pixels, include_hidden_layers=hidden, model_version=version)
    good = len(pixels) % 784 == 0 and pixels and version in ("", "1")
    try:
        reply = predict(handler, request.SerializeToString())
    except ServiceError as error:
        assert not good
        assert str(error).startswith(("pixels: ", "model_version: "))
    else:
        assert good
        assert len(reply.digits) == len(pixels) // 784


@pytest.mark.parametrize(
    ("request_", "error", "sentence"),
    [
        (b"", InvalidInput, r"pixels: is empty; expected n x 784 bytes, n at least 1"),
        (b"\xff\xff", InvalidInput, r"message: is not a digits.v1.PredictRequest"),
        (PredictRequest(pixels=bytes(783)), InvalidInput, r"pixels: holds 783 bytes; expected a multiple of 784"),
        (PredictRequest(pixels=bytes(785)), InvalidInput, r"pixels: holds 785 bytes; expected a multiple of 784"),
        (
            PredictRequest(pixels=bytes(784 * (MAX_BATCH_SIZE + 1))),
            InvalidInput,
            r"pixels: holds 65 images; at most 64 are allowed in one message",
        ),
        (
            PredictRequest(pixels=bytes(784), model_version="9"),
            ModelNotFound,
            r"model_version: there is no version '9'; '1' serves",
        ),
    ],
)
def test_each_invalid_request_has_its_error_message(
    handler: DigitsHandler, request_: bytes | PredictRequest, error: type[ServiceError], sentence: str
) -> None:
    raw = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    with pytest.raises(error, match=f"^{sentence}$"):
        predict(handler, raw)


def test_unknown_fields_of_a_newer_client_are_ignored(handler: DigitsHandler) -> None:
    newer = PredictRequest(pixels=bytes(784)).SerializeToString() + b"\xf8\x01\x07"  # field 31, varint 7
    assert len(predict(handler, newer).digits) == 1


def test_a_long_version_is_shortened_in_the_error(handler: DigitsHandler) -> None:
    with pytest.raises(ModelNotFound) as refused:
        predict(handler, PredictRequest(pixels=bytes(784), model_version="x" * 100_000).SerializeToString())
    assert len(str(refused.value)) < 200

"""Explain and GetNetwork compared with the numpy reference and finite differences, and each error message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from export import checkpoint
from export.network import ACTIVATIONS, Network, sigmoid
from service.batching.batcher import Batcher
from service.errors import InvalidInput, ModelNotFound, ServiceError
from service.handlers.digits import DigitsHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.pb.digits.v1.digits_pb2 import (
    ExplainRequest,
    ExplainResponse,
    GetNetworkRequest,
    GetNetworkResponse,
    Neuron,
    PredictRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOST = 1030  # images: more than one request may explain
SIZES = {1: 16, 2: 16, 3: 10}
NEURONS = [(layer, index) for layer, size in SIZES.items() for index in range(size)]


@pytest.fixture(scope="module", params=["sigmoid", "relu"])
def variant(request: pytest.FixtureRequest, make_model: Callable[..., Path]) -> tuple[DigitsHandler, Network]:
    model = Model(make_model(request.param))
    statistics = Statistics()
    batcher = Batcher(
        model, Metrics(CollectorRegistry()), statistics, max_batch_size=MOST, max_queued_images=MOST, inline=MOST
    )
    handler = DigitsHandler(Predictor(batcher, max_batch_size=MOST))
    return handler, checkpoint.load(checkpoint.committed(request.param)).network


def explain(handler: DigitsHandler, pixels: np.ndarray, neurons: Any = ()) -> ExplainResponse:
    request = ExplainRequest(pixels=pixels.tobytes(), neurons=[Neuron(layer=at, index=i) for at, i in neurons])
    return ExplainResponse.FromString(asyncio.run(handler.explain(request.SerializeToString())))


def forward(network: Network, ink: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Compute the reference's sums and activations of each layer, in float64, for ink (n, 784) in 0..1."""
    layers, below = [], ink
    squashes = [ACTIVATIONS[network.activation]] * 2 + [sigmoid]
    for weights, biases, squash in zip(network.weights, network.biases, squashes, strict=True):
        sums = below @ weights.astype(np.float64).T + biases
        below = squash(sums)
        layers.append((sums, below))
    return layers


def test_every_layer_is_the_references(variant: tuple[DigitsHandler, Network], digits: np.ndarray) -> None:
    handler, network = variant
    reply = explain(handler, digits)
    for i, (sums, activations) in enumerate(forward(network, digits / 255), 1):
        found = (reply.layer1, reply.layer2, reply.activations)[i - 1]
        np.testing.assert_allclose(np.reshape(found, activations.shape), activations, rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.reshape(getattr(reply, f"sums{i}"), sums.shape), sums, rtol=1e-5, atol=2e-5)
    assert reply.model_version == "1"


def test_contributions_are_weight_times_activation_and_with_the_bias_add_up_to_the_sum(
    variant: tuple[DigitsHandler, Network], digits: np.ndarray
) -> None:
    handler, network = variant
    few = digits[::20]
    reply = explain(handler, few, NEURONS)
    layers = forward(network, few / 255)
    below = [few / 255, layers[0][1], layers[1][1]]
    assert [(e.neuron.layer, e.neuron.index) for e in reply.explanations] == NEURONS * len(few)
    for i, explanation in enumerate(reply.explanations):
        row, (layer, index) = i // len(NEURONS), NEURONS[i % len(NEURONS)]
        expected = network.weights[layer - 1][index].astype(np.float64) * below[layer - 1][row]
        np.testing.assert_allclose(explanation.contributions, expected, rtol=1e-5, atol=1e-5)
        total = sum(explanation.contributions) + explanation.bias
        assert total == pytest.approx(getattr(reply, f"sums{layer}")[row * SIZES[layer] + index], rel=1e-5, abs=2e-5)


def test_the_gradient_is_the_slope_that_finite_differences_show(
    variant: tuple[DigitsHandler, Network], digits: np.ndarray
) -> None:
    handler, network = variant
    image, step = digits[7] / 255, 1e-6
    reply = explain(handler, digits[7], NEURONS)
    up, down = (forward(network, image + sign * step * np.eye(784)) for sign in (1, -1))
    for (layer, index), explanation in zip(NEURONS, reply.explanations, strict=True):
        slope = (up[layer - 1][1][:, index] - down[layer - 1][1][:, index]) / (2 * step)
        np.testing.assert_allclose(explanation.gradient, slope, rtol=1e-3, atol=1e-5)
    assert max(np.abs(explanation.gradient).max() for explanation in reply.explanations) > 1e-3


def test_without_neurons_the_output_of_the_digit_read_is_explained(
    variant: tuple[DigitsHandler, Network], digits: np.ndarray
) -> None:
    handler, _ = variant
    reply = explain(handler, digits)
    assert [(e.neuron.layer, e.neuron.index) for e in reply.explanations] == [(3, digit) for digit in reply.digits]
    named = explain(handler, digits[5], [(3, reply.digits[5])])
    np.testing.assert_allclose(named.explanations[0].gradient, reply.explanations[5].gradient, rtol=1e-4, atol=1e-7)


def test_answers_as_predict_does(variant: tuple[DigitsHandler, Network], digits: np.ndarray) -> None:
    handler, _ = variant
    request = PredictRequest(pixels=digits.tobytes(), include_hidden_layers=True).SerializeToString()
    predicted, explained = asyncio.run(handler.predict(request)), explain(handler, digits)
    del explained.sums1[:], explained.sums2[:], explained.sums3[:], explained.explanations[:]
    assert explained.SerializeToString() == predicted


def test_the_packed_reply_equals_that_of_protobuf(variant: tuple[DigitsHandler, Network], digits: np.ndarray) -> None:
    request = ExplainRequest(pixels=digits[:3].tobytes(), neurons=[Neuron(layer=3, index=9), Neuron(layer=1)])
    raw = asyncio.run(variant[0].explain(request.SerializeToString()))
    assert ExplainResponse.FromString(raw).SerializeToString() == raw


def test_the_network_is_the_exported_one(variant: tuple[DigitsHandler, Network]) -> None:
    handler, network = variant
    reply = GetNetworkResponse.FromString(asyncio.run(handler.get_network(b"")))
    assert list(reply.layer_sizes) == [784, 16, 16, 10]
    assert (reply.name, reply.version, reply.activation) == ("digits", "1", network.activation)
    assert reply.weights_sha256 == network.sha256()
    for layer, weights, biases in zip(reply.layers, network.weights, network.biases, strict=True):
        np.testing.assert_allclose(np.reshape(layer.weights, weights.shape), weights, rtol=2.5e-7)
        np.testing.assert_array_equal(np.array(layer.biases, np.float32), biases)
    assert sum(len(layer.weights) + len(layer.biases) for layer in reply.layers) == 13_002


IMAGE = bytes(784)


@pytest.mark.parametrize(
    ("request_", "error", "sentence"),
    [
        (ExplainRequest(), InvalidInput, "pixels: is empty; expected n x 784 bytes, n at least 1"),
        (ExplainRequest(pixels=bytes(783)), InvalidInput, "pixels: holds 783 bytes; expected a multiple of 784"),
        (b"\xff", InvalidInput, "message: is not a digits.v1.ExplainRequest"),
        (ExplainRequest(pixels=IMAGE, model_version="9"), ModelNotFound, "there is no version '9'; '1' serves"),
        (ExplainRequest(pixels=IMAGE, neurons=[Neuron()]), InvalidInput, "neurons[0].layer: is 0; expected 1, 2 or 3"),
        (
            ExplainRequest(pixels=IMAGE, neurons=[Neuron(layer=3), Neuron(layer=3, index=10)]),
            InvalidInput,
            "neurons[1].index: is 10; layer 3 has neurons 0 to 9",
        ),
        (
            ExplainRequest(pixels=IMAGE, neurons=[Neuron(layer=2), Neuron(layer=1, index=2), Neuron(layer=2)]),
            InvalidInput,
            "neurons[2]: is neurons[0] once more; expected each neuron at most once",
        ),
        (
            ExplainRequest(pixels=IMAGE * 50, neurons=[Neuron(layer=1 + i % 2, index=i // 2) for i in range(21)]),
            InvalidInput,
            (
                "neurons: 1600 explanations, 50 images x 21 neurons with those of layer 1 counted twice; "
                "expected at most 1024, which keeps the reply below 4 MiB"
            ),
        ),
        (
            ExplainRequest(pixels=IMAGE * 1025),
            InvalidInput,
            (
                "neurons: 1025 explanations, 1025 images x 1 neurons with those of layer 1 counted twice; "
                "expected at most 1024, which keeps the reply below 4 MiB"
            ),
        ),
    ],
)
def test_each_error_has_its_message(
    variant: tuple[DigitsHandler, Network], request_: Any, error: type[ServiceError], sentence: str
) -> None:
    raw = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    with pytest.raises(error) as refused:
        asyncio.run(variant[0].explain(raw))
    assert sentence in str(refused.value)


def test_the_network_of_another_version_is_not_found(variant: tuple[DigitsHandler, Network]) -> None:
    with pytest.raises(ModelNotFound, match="there is no version '2'"):
        asyncio.run(variant[0].get_network(GetNetworkRequest(model_version="2").SerializeToString()))
    with pytest.raises(InvalidInput, match=r"message: is not a digits\.v1\.GetNetworkRequest"):
        asyncio.run(variant[0].get_network(b"\xff"))


@given(request=st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_any_bytes_get_an_answer_or_a_named_error(variant: tuple[DigitsHandler, Network], request: bytes) -> None:
    for answer in (variant[0].explain, variant[0].get_network):
        try:
            asyncio.run(answer(request))
        except ServiceError as error:
            assert isinstance(error, InvalidInput | ModelNotFound)


def test_after_a_swap_the_new_model_explains_itself(make_model: Callable[..., Path], digits: np.ndarray) -> None:
    statistics, metrics = Statistics(), Metrics(CollectorRegistry())
    first, second = Model(make_model("sigmoid")), Model(make_model("relu"))
    batcher = Batcher(first, metrics, statistics, max_batch_size=MOST, max_queued_images=MOST, inline=MOST)
    handler = DigitsHandler(Predictor(batcher, max_batch_size=MOST))
    batcher.swap(second, Statistics())
    network = checkpoint.load(checkpoint.committed("relu")).network
    reply = explain(handler, digits[:5])
    for i, (sums, _) in enumerate(forward(network, digits[:5] / 255), 1):
        np.testing.assert_allclose(np.reshape(getattr(reply, f"sums{i}"), sums.shape), sums, rtol=1e-5, atol=2e-5)
    told = GetNetworkResponse.FromString(asyncio.run(handler.get_network(b"")))
    assert told.activation == "relu"
    np.testing.assert_array_equal(told.layers[1].biases, network.biases[1])

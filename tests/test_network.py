"""The reference implementation of the film's network."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export import checkpoint
from export.network import LAYER_SIZES, PARAMETER_COUNT, Network


def zeros() -> dict[str, np.ndarray]:
    shapes = {"W1": (16, 784), "b1": (16,), "W2": (16, 16), "b2": (16,), "W3": (10, 16), "b3": (10,)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_has_the_films_thirteen_thousand_and_two_parameters() -> None:
    network = Network.from_parameters("sigmoid", zeros())
    assert sum(array.size for array in network.parameters().values()) == PARAMETER_COUNT == 13_002
    assert LAYER_SIZES == (784, 16, 16, 10)


def test_forward_is_the_films_formula_written_out_neuron_by_neuron() -> None:
    network = checkpoint.load(checkpoint.committed("sigmoid")).network
    pixels = np.random.default_rng(1).integers(0, 256, 784, np.uint8)
    layer = [float(p) / 255 for p in pixels]
    layers = []
    for W, b in zip(network.weights, network.biases, strict=True):
        layer = [
            1 / (1 + math.exp(-sum(float(w) * a for w, a in zip(row, layer, strict=True)) - float(bias)))
            for row, bias in zip(W, b, strict=True)
        ]
        layers.append(layer)
    found = network.forward(pixels[None])
    for expected, actual in zip(layers, (found.layer1, found.layer2, found.activations), strict=True):
        np.testing.assert_allclose(actual[0], expected, rtol=0, atol=1e-12)
    assert found.digit[0] == np.argmax(layers[-1])


def test_relu_is_in_the_hidden_layers_and_the_outputs_stay_sigmoids() -> None:
    arrays = zeros()
    arrays["b1"][:] = [-1.0] * 8 + [2.0] * 8
    found = Network.from_parameters("relu", arrays).forward(np.zeros((1, 784), np.uint8))
    assert found.layer1.tolist() == [[0.0] * 8 + [2.0] * 8]
    assert found.activations.tolist() == [[0.5] * 10]


def test_a_tie_goes_to_the_lowest_digit() -> None:
    assert Network.from_parameters("sigmoid", zeros()).forward(np.zeros((1, 784), np.uint8)).digit[0] == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"W1": np.zeros((784, 16), np.float32)}, r"W1 is float32\[784, 16\]; expected float32\[16, 784\]"),
        ({"b3": np.zeros(10)}, r"b3 is float64\[10\]; expected float32\[10\]"),
        ({"b2": np.full(16, np.nan, np.float32)}, "b2 holds a value that is not finite"),
        ({"W4": np.zeros(1, np.float32)}, "the parameters are .*'W4'.*; expected"),
    ],
)
def test_parameters_of_another_network_are_rejected(change: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Network.from_parameters("sigmoid", {**zeros(), **change})


def test_an_unknown_activation_is_rejected() -> None:
    with pytest.raises(ValueError, match="activation is 'gelu'; expected one of sigmoid, relu"):
        Network.from_parameters("gelu", zeros())  # type: ignore[arg-type]


def test_the_digest_changes_with_any_parameter() -> None:
    before = Network.from_parameters("sigmoid", zeros()).sha256()
    for name, array in zeros().items():
        array.flat[-1] = 1e-30
        assert Network.from_parameters("sigmoid", {**zeros(), name: array}).sha256() != before

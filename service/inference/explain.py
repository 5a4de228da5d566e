"""Explain each neuron's activation: sums, contributions and gradients, from the weights and the answers of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from service.network import Floats, Parameters, Pixels, Predictions

    Places = npt.NDArray[np.int64]

INK = 255
"""The byte of a pixel that is all ink; slopes are by the share of that."""


class Explanations(NamedTuple):
    """Of p neurons, each in one image: biases (p,); contributions (p, 784 or 16); slopes by pixel (p, 784)."""

    biases: Floats
    contributions: Floats
    gradients: Floats


class Explainer:
    """Explains runs of the network with these parameters.

    `activation` is that of the hidden layers, `sigmoid` or `relu`. Layers are numbered 1, 2 (hidden) and 3.
    """

    def __init__(self, parameters: Parameters, activation: str) -> None:
        self._weights, self._biases = parameters
        self._activation = activation
        self.sizes = tuple(len(biases) for biases in self._biases)

    def sums(self, pixels: Pixels, predictions: Predictions) -> tuple[Floats, Floats, Floats]:
        """Pre-activations, (n, 16), (n, 16) and (n, 10), of pixels (n, 784) and their predictions."""
        first, second, third = (
            self._layer_inputs(layer, pixels, predictions) @ self._weights[layer - 1].T + self._biases[layer - 1]
            for layer in (1, 2, 3)
        )
        return first, second, third

    def explain(
        self, layer: int, indices: Places, images: Places, pixels: Pixels, predictions: Predictions
    ) -> Explanations:
        """Neuron `indices[i]` of a layer in image `images[i]`, for each i of p, in one pass over all of them."""
        weights = self._weights[layer - 1][indices]
        contributions = self._layer_inputs(layer, pixels, predictions)[images] * weights
        slope = self._activation_slope(layer, predictions)[images, indices, None] * weights
        for lower in range(layer - 1, 0, -1):
            slope = (slope * self._activation_slope(lower, predictions)[images]) @ self._weights[lower - 1]
        slope *= np.float32(INK)
        return Explanations(self._biases[layer - 1][indices], contributions, slope)

    def _layer_inputs(self, layer: int, pixels: Pixels, predictions: Predictions) -> Floats:
        """Return the inputs of a layer."""
        return pixels.astype(np.float32) if layer == 1 else (predictions.layer1, predictions.layer2)[layer - 2]

    def _activation_slope(self, layer: int, predictions: Predictions) -> Floats:
        """The slope of each neuron's activation function, computed from the activation: (n, neurons)."""
        activation = (predictions.layer1, predictions.layer2, predictions.activations)[layer - 1]
        if layer < 3 and self._activation == "relu":
            return (activation > 0).astype(np.float32)
        return activation * (1 - activation)

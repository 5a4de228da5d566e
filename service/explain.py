"""Why each neuron is as bright as it is: sums, contributions and slopes, from the weights and what a run answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from service.model import Floats, Parameters, Pixels, Predictions

INK = 255
"""The byte of a pixel that is all ink; slopes are by the share of that."""


class Explanation(NamedTuple):
    """One neuron in n images: bias; contributions of what is below it (n, 784 or 16); slopes by pixel (n, 784)."""

    bias: float
    contributions: Floats
    gradient: Floats


class Explainer:
    """Explains runs of the network with these parameters.

    `activation` is what the hidden layers squash with, `sigmoid` or `relu`. Layers are numbered 1, 2 (hidden) and 3.
    """

    def __init__(self, parameters: Parameters, activation: str) -> None:
        self._weights, self._biases = parameters
        self._activation = activation
        self.sizes = tuple(len(biases) for biases in self._biases)

    def sums(self, pixels: Pixels, found: Predictions) -> tuple[Floats, Floats, Floats]:
        """The sums before the squashing, (n, 16), (n, 16) and (n, 10), for pixels (n, 784) and their answer."""
        first, second, third = (
            self._below(layer, pixels, found) @ self._weights[layer - 1].T + self._biases[layer - 1]
            for layer in (1, 2, 3)
        )
        return first, second, third

    def explain(self, neuron: tuple[int, int], pixels: Pixels, found: Predictions) -> Explanation:
        """One neuron, (layer, place in it), in every image."""
        layer, index = neuron
        contributions = self._below(layer, pixels, found) * self._weights[layer - 1][index]
        slope = self._slope(layer, found)[:, index, None] * self._weights[layer - 1][index]
        for lower in range(layer - 1, 0, -1):
            slope = (slope * self._slope(lower, found)) @ self._weights[lower - 1]
        return Explanation(float(self._biases[layer - 1][index]), contributions, slope * np.float32(INK))

    def _below(self, layer: int, pixels: Pixels, found: Predictions) -> Floats:
        """What goes into a layer."""
        return (pixels.astype(np.float32), found.layer1, found.layer2)[layer - 1]

    def _slope(self, layer: int, found: Predictions) -> Floats:
        """The slope of each neuron's squashing where it stands, which its activation tells: (n, neurons)."""
        activation = (found.layer1, found.layer2, found.activations)[layer - 1]
        if layer < 3 and self._activation == "relu":
            return (activation > 0).astype(np.float32)
        return activation * (1 - activation)

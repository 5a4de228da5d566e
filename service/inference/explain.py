"""Why each neuron is as bright as it is: sums, contributions and slopes, from the weights and what a run answered."""

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

    def explain(self, layer: int, indices: Places, images: Places, pixels: Pixels, found: Predictions) -> Explanations:
        """Neuron `indices[i]` of a layer in image `images[i]`, for each i of p, in one pass over all of them."""
        weights = self._weights[layer - 1][indices]
        contributions = self._below(layer, pixels, found)[images] * weights
        slope = self._slope(layer, found)[images, indices, None] * weights
        for lower in range(layer - 1, 0, -1):
            slope = (slope * self._slope(lower, found)[images]) @ self._weights[lower - 1]
        slope *= np.float32(INK)
        return Explanations(self._biases[layer - 1][indices], contributions, slope)

    def _below(self, layer: int, pixels: Pixels, found: Predictions) -> Floats:
        """What goes into a layer."""
        return pixels.astype(np.float32) if layer == 1 else (found.layer1, found.layer2)[layer - 2]

    def _slope(self, layer: int, found: Predictions) -> Floats:
        """The slope of each neuron's squashing where it stands, which its activation tells: (n, neurons)."""
        activation = (found.layer1, found.layer2, found.activations)[layer - 1]
        if layer < 3 and self._activation == "relu":
            return (activation > 0).astype(np.float32)
        return activation * (1 - activation)

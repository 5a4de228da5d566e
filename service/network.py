"""The network, 784-16-16-10: its shape, inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PIXELS = 784
"""Inputs: the pixels of a picture of 28 x 28."""
HIDDEN = 16
"""Neurons of each of the two hidden layers."""
DIGITS = 10
"""Outputs: one a digit."""

LOWEST_TOP, HIGHEST_SECOND = 0.6, 0.2
"""An answer is unsure with a highest activation below the one, or a second above the other.

Chosen on handwriting that the network was not trained on: of the other answers 98% are right. The client warns by the
same rule.
"""

Pixels = npt.NDArray[np.uint8]
"""Pictures (n, 784), 0 for background to 255 for ink."""
Floats = npt.NDArray[np.float32]


def is_unsure(top: Floats | float, second: Floats | float) -> Any:
    """Return whether answers with these highest and second highest activations are unsure; a bool, or (n,) bool."""
    return (top < LOWEST_TOP) | (second > HIGHEST_SECOND)


class Predictions(NamedTuple):
    """The network's outputs for n images: digit (n,), activations (n, 10), layer1 and layer2 (n, 16)."""

    digit: npt.NDArray[np.int64]
    activations: Floats
    layer1: Floats
    layer2: Floats

    def rows(self, start: int, stop: int) -> Predictions:
        """Those of images `start` up to `stop`, as views."""
        return Predictions(
            self.digit[start:stop], self.activations[start:stop], self.layer1[start:stop], self.layer2[start:stop]
        )


class Parameters(NamedTuple):
    """The weights (out, in) and biases (out,) that the session computes with, layer by layer from the pixels up.

    The first layer's weights are for pixels 0 to 255.
    """

    weights: tuple[Floats, Floats, Floats]
    biases: tuple[Floats, Floats, Floats]


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of a model file: the `metadata_props` of its graph."""

    name: str
    version: str
    activation: str
    layer_sizes: str
    parameter_count: int
    accuracy: str
    accuracy_data: str
    weights_sha256: str
    content_sha256: str

"""Records a training run for the playground: accuracy by epoch, and the first layer at some of the epochs.

The file is JSON of about 65 kB, 20 kB compressed: pictures of weights are kept at CHECKPOINTS epochs, a letter a
weight.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from export.mnist import Examples
    from export.network import Floats, Network

CHECKPOINTS = 5
"""Number of epochs with weights, including the first and the last: closer at the start, which changes more."""

LEVELS = 5
"""Letters for weights above 0, and as many below."""

EXPONENT = 0.75
"""Below 1, so that small weights, of which there are most, have more of the letters."""


class Recording:
    """One network on its way, `add` by `add`: before the first epoch, and after each."""

    def __init__(self, held_out: Examples) -> None:
        self._held_out = held_out
        self._activation = ""
        self._accuracy: list[float] = []
        self._weights: list[Floats] = []

    def add(self, networks: Sequence[Network]) -> None:
        """Measure the first seed's network, and keep its first layer."""
        network = networks[0]
        read = network.forward(self._held_out.images).digit
        self._activation = network.activation
        self._accuracy.append(float(np.mean(read == self._held_out.labels)))
        self._weights.append(network.weights[0])

    def to_json(self) -> dict[str, Any]:
        """`accuracy` has one value an epoch, from 0; `checkpoints` the weights by epoch, as `letters`."""
        last = len(self._weights) - 1
        return {
            "activation": self._activation,
            "accuracy": [round(value, 4) for value in self._accuracy],
            "checkpoints": [
                {"epoch": epoch, "largest": round(float(np.abs(self._weights[epoch]).max()), 5), "weights": letters(w)}
                for epoch in checkpoints(last)
                for w in [self._weights[epoch]]
            ],
        }

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self.to_json()) + "\n")


def checkpoints(last: int) -> list[int]:
    """The epochs whose weights are kept, at most CHECKPOINTS of them, 0 and the last among them."""
    spaced = np.geomspace(1, max(last, 1), CHECKPOINTS - 1).round().astype(int).tolist()
    return sorted({0, last, *(epoch for epoch in spaced if epoch <= last)})


def letters(weights: Floats) -> str:
    """Weights -> a letter each, row by row: `A` is minus the largest, `F` is 0, `K` is the largest."""
    flat = weights.reshape(-1).astype(np.float64)
    share = flat / max(float(np.abs(flat).max()), 1e-12)
    levels = np.rint(np.sign(share) * np.abs(share) ** EXPONENT * LEVELS).astype(int) + LEVELS
    return bytes(levels.astype(np.uint8) + ord("A")).decode("ascii")

"""The metadata of a trained network's file: its training, and the measurements of all seeds."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from export import mnist
from export.evaluate import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.mnist import Examples
    from export.network import Network
    from export.recipe import Recipe

TEST_DATA = "MNIST test set, 10,000 images"

KEPT_SEED = 0
"""The result is always the first seed's network: a fair sample of the recipe."""

_LIBRARIES = ("jax", "jaxlib", "numpy", "optax")


def made(recipe: Recipe, command: str) -> dict[str, Any]:
    """How the network came about: every hyper-parameter, the seed kept, the command, the data and the libraries."""
    return {
        **asdict(recipe),
        "seed": KEPT_SEED,
        "seed_rule": "the first seed, independent of the others",
        "command": command,
        "data_sha256": mnist.FILES,
        "libraries": {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES},
    }


def measured(validation: Sequence[Measurement], test: Sequence[Measurement]) -> dict[str, Any]:
    """Return the network's measurements, and the spread of all seeds; one measurement per seed, in order.

    `validation` is of the same recipe run on the 50,000 digits that are not held out.
    """
    return {
        "accuracy": test[KEPT_SEED].accuracy,
        "accuracy_data": TEST_DATA,
        "one_bright": test[KEPT_SEED].one_bright,
        "validation_accuracy": validation[KEPT_SEED].accuracy,
        "over_seeds": {
            "accuracy": spread([m.accuracy for m in test]),
            "one_bright": spread([m.one_bright for m in test]),
            "validation_accuracy": spread([m.accuracy for m in validation]),
            "validation_one_bright": spread([m.one_bright for m in validation]),
        },
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The mean, the least and the greatest of some values, and each of them."""
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values), "each": list(values)}


def measurements(networks: Sequence[Network], examples: Examples) -> list[Measurement]:
    """Measure each network on labelled digits, by the numpy reference."""
    return [Measurement.of(network.forward(examples.images).activations, examples.labels) for network in networks]

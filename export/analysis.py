"""Analyse hidden neurons by ablation and by comparison with edges, and answers to pictures that are no digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from export.evaluate import BRIGHT
from export.network import ACTIVATIONS, LAYER_SIZES, sigmoid

if TYPE_CHECKING:
    from collections.abc import Callable

    from export.mnist import Bytes, Examples
    from export.network import Doubles, Network

SIDE = 28
CERTAIN = 0.99
"""A winning output above this is certain."""

EDGE_WIDTHS = (1.0, 1.5, 2.5)
EDGE_LENGTH = 2.0  # times the width
EDGE_ANGLES = 12


@dataclass(frozen=True, eq=False)
class Ablation:
    """The loss of a network when a hidden neuron is constant.

    `lost` is the share of images that are no longer read correctly, `lost_by_digit` (10,) that of each digit. Below 0
    the ablation helps.
    """

    layer: int
    index: int
    lost: float
    lost_by_digit: Doubles


def ablate(network: Network, examples: Examples) -> list[Ablation]:
    """Each of the 32 hidden neurons in turn held at its mean over the images, the rest of the network as it is."""
    layers = network.forward(examples.images)
    baseline = _right(layers.digit, examples.labels)
    results = []
    for layer, values in ((1, layers.layer1), (2, layers.layer2)):
        for index in range(LAYER_SIZES[layer]):
            pinned = values.copy()
            pinned[:, index] = values[:, index].mean()
            lost = baseline - _right(_from(network, layer, pinned).argmax(axis=1), examples.labels)
            counts = np.bincount(examples.labels, minlength=10)
            by_digit = np.bincount(examples.labels, weights=lost, minlength=10) / np.maximum(counts, 1)
            results.append(Ablation(layer, index, float(lost.mean()), by_digit))
    return results


def _right(digits: npt.NDArray[np.int64], labels: Bytes) -> Doubles:
    return np.asarray((digits == labels).astype(np.float64), dtype=np.float64)


def _from(network: Network, layer: int, values: Doubles) -> Doubles:
    """Return the 10 outputs for the values of that hidden layer."""
    for at in range(layer, 3):
        activation = ACTIVATIONS[network.activation] if at < 2 else sigmoid
        values = activation(values @ network.weights[at].T.astype(np.float64) + network.biases[at])
    return np.asarray(values, dtype=np.float64)


def edges(network: Network) -> Doubles:
    """How much of each first-layer neuron's weights one edge or one line explains: R squared of the best, (16,).

    The candidates are Gabor-like: the first and second derivative of a Gaussian, at every pixel, 12 angles and 3
    widths. 1 is a neuron that is only an edge or a line.
    """
    weights = network.weights[0].astype(np.float64)
    weights = weights - weights.mean(axis=1, keepdims=True)
    best = np.zeros(len(weights))
    for width in EDGE_WIDTHS:
        for angle in np.arange(EDGE_ANGLES) * np.pi / EDGE_ANGLES:
            for template in _templates(width, angle):
                best = np.maximum(best, ((weights @ template.T) ** 2).max(axis=1))
    return np.asarray(best / (weights**2).sum(axis=1), dtype=np.float64)


def _templates(width: float, angle: float) -> list[Doubles]:
    """An edge and a line of that width and angle at each pixel: (784, 784), each of mean 0 and length 1."""
    at = np.arange(SIDE)
    y, x = (grid.reshape(-1) for grid in np.meshgrid(at, at, indexing="ij"))
    down, right = y[None, :] - y[:, None], x[None, :] - x[:, None]
    across = (np.cos(angle) * right + np.sin(angle) * down) / width
    along = (np.cos(angle) * down - np.sin(angle) * right) / (EDGE_LENGTH * width)
    window = np.exp(-(across**2 + along**2) / 2)
    both = (across * window, (1 - across**2) * window)
    centred = (t - t.mean(axis=1, keepdims=True) for t in both)
    return [t / np.linalg.norm(t, axis=1, keepdims=True) for t in centred]


@dataclass(frozen=True, eq=False)
class Mistakes:
    """Images read wrongly, the most certain first: row in the data, label, digit read and its brightness, (n,) each."""

    rows: npt.NDArray[np.int64]
    labels: Bytes
    read: npt.NDArray[np.int64]
    brightness: Doubles


def mistakes(network: Network, examples: Examples) -> Mistakes:
    """Every image that the network reads wrongly."""
    layers = network.forward(examples.images)
    wrong = np.flatnonzero(layers.digit != examples.labels)
    brightness = layers.activations.max(axis=1)[wrong]
    rows = wrong[np.argsort(-brightness, kind="stable")]
    return Mistakes(rows, examples.labels[rows], layers.digit[rows], layers.activations.max(axis=1)[rows])


def out_of_distribution(n: int, seed: int = 0) -> dict[str, Bytes]:
    """Return pictures that are no digits, n of each kind, (n, 784), by the name of the kind."""
    rng = np.random.default_rng(seed)
    kinds: dict[str, Callable[[np.random.Generator], npt.NDArray[np.float64]]] = {
        "noise, any greys": lambda r: r.random((SIDE, SIDE)),
        "noise, a fifth ink": lambda r: (r.random((SIDE, SIDE)) < 0.2).astype(np.float64),
        "rectangles": _rectangle,
        "rings and discs": _disc,
        "three straight lines": _lines,
    }
    return {
        kind: np.stack([(255 * make(rng)).round().astype(np.uint8).reshape(-1) for _ in range(n)])
        for kind, make in kinds.items()
    }


def _rectangle(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    picture = np.zeros((SIDE, SIDE))
    top, left = rng.integers(3, 14, 2)
    high, wide = rng.integers(4, 12, 2)
    picture[top : top + high, left : left + wide] = 1
    return picture


def _disc(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    y, x = np.mgrid[:SIDE, :SIDE] - rng.uniform(9, 18, 2)[:, None, None]
    radius, hole = np.hypot(y, x), rng.choice([0.0, 0.5, 0.8])
    outer = rng.uniform(3, 9)
    return np.asarray(((radius < outer) & (radius >= hole * outer)).astype(np.float64), dtype=np.float64)


def _lines(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    picture = np.zeros((SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(3):
        (y0, x0), (y1, x1) = rng.uniform(4, 23, (2, 2))
        along = np.clip(((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / max((y1 - y0) ** 2 + (x1 - x0) ** 2, 1), 0, 1)
        away = np.hypot(y - y0 - along * (y1 - y0), x - x0 - along * (x1 - x0))
        picture = np.maximum(picture, np.clip(2 - away, 0, 1))
    return np.asarray(picture, dtype=np.float64)


@dataclass(frozen=True)
class Certainty:
    """How sure a network is of n images: shares with one output lit alone, and certain; the digit read most often."""

    one_lit: float
    certain: float
    favourite: int
    favourite_share: float


def certainty(network: Network, images: Bytes) -> Certainty:
    """Of images (n, 784), n at least 1."""
    layers = network.forward(images)
    counts = np.bincount(layers.digit, minlength=10)
    return Certainty(
        one_lit=float(((layers.activations > BRIGHT).sum(axis=1) == 1).mean()),
        certain=float((layers.activations.max(axis=1) > CERTAIN).mean()),
        favourite=int(counts.argmax()),
        favourite_share=float(counts.max() / len(images)),
    )

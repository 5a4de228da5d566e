"""How reliable each answer is, from its picture and its activations alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.network import PIXELS, Floats, Pixels, is_unsure

_SIDE = 28
_LONGER_SIDE = (18, 21)
_FARTHEST_FROM_MIDDLE = 1.1
_LEAST_PEAK = 200
"""The limits of all test digits of MNIST: pixels of the longer side, pixels of the centre of mass, brightest level.

The client sends a picture as it is by the same rule.
"""


class Reliability(NamedTuple):
    """For n answers: the second digit (n,), whether to rely on the first (n,), and the in-distribution score (n,)."""

    second: npt.NDArray[np.int64]
    sure: npt.NDArray[np.bool_]
    in_distribution: Floats

    @classmethod
    def of(cls, pixels: Pixels, activations: Floats) -> Reliability:
        """Judge answers (n, 10) to pictures (n, 784)."""
        order = np.argsort(-activations, axis=1, kind="stable")
        top, second = np.take_along_axis(activations, order[:, :2], axis=1).T
        score = np.where(are_in_mnist_form(pixels), _exactly_one_on(activations), 0).astype(np.float32)
        return cls(order[:, 1], ~is_unsure(top, second) & (score > 0), score)


def _exactly_one_on(activations: Floats) -> npt.NDArray[np.float64]:
    """Compute the probability that one output is on and the other nine are off, each by itself; (n,)."""
    on = activations.astype(np.float64)
    off = np.repeat((1 - on)[:, None], on.shape[1], axis=1)  # (n, output that is on, output)
    every = np.arange(on.shape[1])
    off[:, every, every] = on
    return np.asarray(off.prod(axis=2).sum(axis=1))


def are_in_mnist_form(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """Return for each picture (n, 784) whether its ink has the size, place and contrast of MNIST's digits."""
    images = pixels.reshape(-1, _SIDE, _SIDE)
    inked = images > 0
    height, width = (_extents(np.asarray(inked.any(axis=axis))) for axis in (2, 1))
    longer = np.maximum(height, width)
    mass = images.sum(axis=(1, 2), dtype=np.float64)
    middle, places = (_SIDE - 1) / 2, np.arange(_SIDE)
    y, x = (images.sum(axis=axis, dtype=np.float64) @ places / np.maximum(mass, 1) for axis in (2, 1))
    return np.asarray(
        (images.max(axis=(1, 2)) >= _LEAST_PEAK)
        & (inked.sum(axis=(1, 2)) < PIXELS // 2)
        & (longer >= _LONGER_SIDE[0])
        & (longer <= _LONGER_SIDE[1])
        & (np.maximum(np.abs(y - middle), np.abs(x - middle)) <= _FARTHEST_FROM_MIDDLE)
    )


def _extents(inked: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count from the first true to the last of each row (n, 28); meaningless for a row without any."""
    return np.asarray(inked.shape[1] - inked.argmax(axis=1) - inked[:, ::-1].argmax(axis=1))

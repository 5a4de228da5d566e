"""Measure the network's weaknesses: digits with changes unknown to training, and pictures without a digit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.table import Table

from export import evaluate
from export.mnist import Examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from export.mnist import Bytes

_SIDE = 28
_SEED = 0
_BLANK_IMAGES = 10_000


class Weakness(NamedTuple):
    """The share of changed test digits that are read correctly, 0 to 1; None for pictures without a digit.

    `sure` is the share of all answers, right or wrong, whose brightest output is over 0.9.
    """

    change: str
    accuracy: float | None
    sure: float


def measure(model: Path, test: Examples) -> list[Weakness]:
    """Run every change of the test digits, and pictures without a digit, through the file in ONNX Runtime."""
    results = [_measured(model, name, Examples(change(test.images), test.labels)) for name, change in _CHANGES.items()]
    return results + [_measured(model, name, Examples(make(), _no_labels())) for name, make in _PICTURES.items()]


def table(weaknesses: list[Weakness]) -> Table:
    """For the terminal."""
    rows = Table(title="changes unknown to training", title_justify="left")
    for heading in ("picture", "right", "brightest over 0.9"):
        rows.add_column(heading, justify="left" if heading == "picture" else "right")
    for change, accuracy, sure in weaknesses:
        rows.add_row(change, "no digit" if accuracy is None else f"{accuracy:.1%}", f"{sure:.1%}")
    return rows


def shifted(images: Bytes, right: int, down: int) -> Bytes:
    """Images (n, 784) moved by whole pixels, with background at the other edge."""
    margin = max(abs(right), abs(down))
    padded = np.pad(images.reshape(-1, _SIDE, _SIDE), ((0, 0), (margin, margin), (margin, margin)))
    top, left = margin - down, margin - right
    return padded[:, top : top + _SIDE, left : left + _SIDE].reshape(-1, _SIDE * _SIDE)


def turned(images: Bytes, degrees: float) -> Bytes:
    """Images (n, 784) turned clockwise about their middle, read between pixels, background outside."""
    y, x = np.indices((_SIDE, _SIDE)).reshape(2, -1) - (_SIDE - 1) / 2
    sin, cos = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    at_y, at_x = cos * y - sin * x + (_SIDE + 1) / 2, sin * y + cos * x + (_SIDE + 1) / 2
    at_y, at_x = at_y.clip(0, _SIDE + 0.999), at_x.clip(0, _SIDE + 0.999)
    top, left = at_y.astype(int), at_x.astype(int)
    padded = np.pad(images.reshape(-1, _SIDE, _SIDE), ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    down, right = at_y - top, at_x - left
    read = (1 - down) * ((1 - right) * padded[:, top, left] + right * padded[:, top, left + 1]) + down * (
        (1 - right) * padded[:, top + 1, left] + right * padded[:, top + 1, left + 1]
    )
    rounded: Bytes = np.rint(read).astype(np.uint8)
    return rounded


def _noisy(images: Bytes, deviation: float) -> Bytes:
    noise = np.random.default_rng(_SEED).normal(0, deviation, images.shape)
    return np.rint(images + noise).clip(0, 255).astype(np.uint8)


def _noise() -> Bytes:
    return np.random.default_rng(_SEED).integers(0, 256, (_BLANK_IMAGES, _SIDE * _SIDE), np.uint8)


def _no_labels() -> Bytes:
    return np.zeros(_BLANK_IMAGES, np.uint8)


_CHANGES: dict[str, Callable[[Bytes], Bytes]] = {
    "as they are": lambda images: images,
    **{f"{n} px to the right": lambda images, n=n: shifted(images, n, 0) for n in (1, 2, 3, 4)},  # type: ignore[misc]
    **{f"turned by {n} degrees": lambda images, n=n: turned(images, n) for n in (10, 20, 30, 45)},  # type: ignore[misc]
    **{f"noise of {n} grey levels": lambda images, n=n: _noisy(images, n) for n in (25, 50, 100)},  # type: ignore[misc]
    "ink and paper exchanged": lambda images: 255 - images,
}
_PICTURES: dict[str, Callable[[], Bytes]] = {
    "blank": lambda: np.zeros((_BLANK_IMAGES, _SIDE * _SIDE), np.uint8),
    "random pixels": _noise,
}


def _measured(model: Path, name: str, examples: Examples) -> Weakness:
    activations = evaluate.activations(model, examples.images)
    results = evaluate.Measurement.of(activations, examples.labels)
    sure = float((activations.max(axis=1) > 0.9).mean())
    return Weakness(name, None if name in _PICTURES else results.accuracy, sure)

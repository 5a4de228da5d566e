"""The pictures: how training went, and which digit was taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from export.evaluate import Measurement
    from export.train import Epoch

_DPI = 120


def learning_curve(history: Sequence[Epoch], title: str, path: Path) -> None:
    """Loss and held-out error by epoch, each a line for the mean of the seeds in a band from lowest to highest."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    errors = [1 - epoch.accuracy for epoch in history if epoch.accuracy is not None]
    for axes, label, values in (
        (left, "loss on the distorted training digits", np.array([epoch.loss for epoch in history])),
        (right, "error on the held-out digits, %", 100 * np.array(errors)),
    ):
        axes.plot(epochs, values.mean(axis=1), linewidth=1)
        axes.fill_between(epochs, values.min(axis=1), values.max(axis=1), alpha=0.3, linewidth=0)
        axes.set(xlabel="epoch", ylabel=label, yscale="log")
        for level in ("major", "minor"):
            getattr(axes.yaxis, f"set_{level}_formatter")("{x:g}")
        axes.grid(visible=True, which="both", alpha=0.3)
    figure.suptitle(title)
    _write(figure, path)


def confusion(measurement: Measurement, path: Path) -> None:
    """The 10 by 10 table of digit against what was read; colour for the mistakes alone, which it would else drown."""
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    counts = measurement.confusion
    mistakes = np.where(np.eye(10, dtype=bool), 0, counts)
    axes.imshow(mistakes, cmap="Reds", vmax=1.5 * max(1, mistakes.max()))
    for (digit, read), count in np.ndenumerate(counts):
        axes.text(read, digit, str(count) if count else "", ha="center", va="center", fontsize=8)
    axes.set(xticks=range(10), yticks=range(10), xlabel="read as", ylabel="digit")
    axes.set_title(f"{measurement.accuracy:.2%} of {measurement.images:,} digits read correctly")
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    # Without the library's version the picture is the same, byte for byte, wherever the same library draws it.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})

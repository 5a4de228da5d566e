"""Pictures: learning curves, confusion matrices, and the weights of neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from export.analysis import Ablation
    from export.evaluate import Measurement
    from export.network import Network
    from export.train import Epoch

_DPI = 120
_SIGNED = LinearSegmentedColormap.from_list("signed", ["#ff6052", "#000000", "#58a6ff"])
"""The film's colours of weights: red below 0, black, blue above."""


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
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # each tenth would run into the next
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(visible=True, which="both", alpha=0.3)
    figure.suptitle(title)
    _write(figure, path)


def confusion(measurement: Measurement, path: Path) -> None:
    """Draw the confusion matrix, with colours for the errors only, which would otherwise be invisible."""
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


def first_layer(networks: Sequence[Network], path: Path) -> None:
    """The first layer's weights of each network, 28x28 a neuron, all of a network to one scale."""
    figure = Figure(figsize=(10, 2.9 * len(networks)), layout="constrained")
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(networks), 1)))
    for part, network in zip(parts, networks, strict=True):
        weights = network.weights[0]
        limit = float(np.percentile(np.abs(weights), 99.5))
        grid = part.subplots(2, 8)
        for i, axes in enumerate(grid.flat):
            picture = axes.imshow(weights[i].reshape(28, 28), cmap=_SIGNED, vmin=-limit, vmax=limit)
            axes.set_title(str(i), fontsize=8, pad=2)
            axes.set_axis_off()
        part.colorbar(picture, ax=grid, shrink=0.8, label="weight", extend="both")
        part.suptitle(f"{network.activation}: weights of each neuron of the first hidden layer", fontsize=10)
    _write(figure, path)


def ablation(results: Sequence[Ablation], title: str, path: Path) -> None:
    """Percentage points of each digit lost without each hidden neuron."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    grid = figure.subplots(2, 1)
    lost = 100 * np.array([one.lost_by_digit for one in results])
    limit = max(1.0, float(np.abs(lost).max()))
    for layer, axes in enumerate(grid, 1):
        rows = np.array([row for row, one in zip(lost, results, strict=True) if one.layer == layer])
        picture = axes.imshow(-rows.T, cmap=_SIGNED, vmin=-limit, vmax=limit, aspect="auto")
        axes.set(xticks=range(16), yticks=range(10), ylabel="digit", xlabel=f"neuron of hidden layer {layer} left out")
        axes.tick_params(labelsize=7)
    figure.colorbar(picture, ax=grid, label="points gained")
    figure.suptitle(f"{title}: loss of each digit without one neuron", fontsize=10)
    _write(figure, path)


def images(pixels: npt.NDArray[np.uint8], titles: Sequence[str], path: Path) -> None:
    """Draw images (n, 784), 10 in a row, each under its title."""
    columns = min(10, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(columns, 1.2 * rows), layout="constrained")
    for i, axes in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        axes.set_axis_off()
        if i < len(pixels):
            axes.imshow(pixels[i].reshape(28, 28), cmap="gray", vmin=0, vmax=255)
            axes.set_title(titles[i], fontsize=7, pad=2)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    # Without the library's version the picture is the same, byte for byte, on every machine with the same library.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})

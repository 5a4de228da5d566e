"""Commands that analyse a trained network: weights drawn, neurons left out, mistakes, pictures that are no digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from commandline.options import output_file
from export import analysis, checkpoint, mnist
from export.commands_train import in_build, need, write_file
from export.network import Activation
from export.recipe import Handwriting

if TYPE_CHECKING:
    from export.network import Network

Which = Annotated[Activation, typer.Option(help="which committed network: its hidden units")]
Weights = Annotated[Path | None, typer.Option(help="another network, as `train` wrote it", exists=True, dir_okay=False)]
Folder = Annotated[Path, typer.Option("--data", help="the folder with MNIST's four files, plain or .gz")]
Picture = Annotated[Path | None, output_file("--png", help="draw it here")]
DRAWING = Path("build/weights.png")
SYNTHETIC = Path("build/synthetic-digits.png")


def draw(
    out: Annotated[Path | None, output_file("--out", help="the PNG to write", show_default=str(DRAWING))] = None,
    weights: Weights = None,
) -> None:
    """Draw the first layer's weights, a picture of 28x28 a neuron: of both committed networks, or of another."""
    need("matplotlib")
    networks = [_network("sigmoid", weights)] if weights else [_network(one, None) for one in get_args(Activation)]
    from export import plots  # noqa: PLC0415 (matplotlib is an extra)

    out = out or in_build(DRAWING)
    write_file(out, lambda path: plots.first_layer(networks, path))
    print(f"wrote {out}")


def ablate(
    activation: Which = "sigmoid", weights: Weights = None, folder: Folder = mnist.FOLDER, png_file: Picture = None
) -> None:
    """Hold each hidden neuron at its mean in turn: which of the test digits are then read correctly no more."""
    if png_file:
        need("matplotlib")
    network = _network(activation, weights)
    test = mnist.load(folder).test
    results = analysis.ablate(network, test)
    edges = analysis.edges(network)
    table = Table(title=f"{network.activation}: percentage points of {len(test):,} digits lost without each neuron")
    for heading in ("layer", "neuron", "edge R2", "all", *map(str, range(10))):
        table.add_column(heading, justify="right")
    for one in results:
        edge = f"{edges[one.index]:.2f}" if one.layer == 1 else ""
        shares = (_points(share) for share in (one.lost, *one.lost_by_digit))
        table.add_row(str(one.layer), str(one.index), edge, *shares, end_section=one.index == 15)
    Console(width=110).print(table)
    if png_file:
        from export import plots  # noqa: PLC0415 (matplotlib is an extra)

        write_file(png_file, lambda path: plots.ablation(results, network.activation, path))


def mistakes(
    activation: Which = "sigmoid",
    weights: Weights = None,
    folder: Folder = mnist.FOLDER,
    limit: Annotated[int, typer.Option(min=1, max=100, help="how many")] = 20,
    png_file: Picture = None,
) -> None:
    """Show the test digits that were read wrongly with the most certainty."""
    if png_file:
        need("matplotlib")
    network, test = _network(activation, weights), mnist.load(folder).test
    results = analysis.mistakes(network, test)
    certain = int((results.brightness > analysis.CERTAIN).sum())
    print(
        f"{network.activation}: {len(results.rows)} of {len(test):,} test digits are read wrongly, "
        f"{certain} of them with a brightness over {analysis.CERTAIN}"
    )
    table = Table()
    for heading in ("image", "digit", "read as", "brightness"):
        table.add_column(heading, justify="right")
    mistakes_ = zip(results.rows, results.labels, results.read, results.brightness, strict=True)
    for row, label, read, brightness in list(mistakes_)[:limit]:
        table.add_row(str(row), str(label), str(read), f"{brightness:.4f}")
    Console().print(table)
    if png_file:
        from export import plots  # noqa: PLC0415 (matplotlib is an extra)

        titles = [f"{d} as {r}" for d, r in zip(results.labels[:limit], results.read[:limit], strict=True)]
        write_file(png_file, lambda path: plots.images(test.images[results.rows[:limit]], titles, path))


def out_of_distribution(
    activation: Which = "sigmoid",
    weights: Weights = None,
    images: Annotated[int, typer.Option(min=1, max=100_000, help="pictures of each kind")] = 2_000,
    png_file: Picture = None,
) -> None:
    """Show how sure the network is of pictures that are no digits."""
    if png_file:
        need("matplotlib")
    network = _network(activation, weights)
    kinds = analysis.out_of_distribution(images)
    table = Table(title=f"{network.activation}: {images:,} pictures of each kind")
    for heading in ("shown", "one output lit", f"over {analysis.CERTAIN}", "read most often as"):
        table.add_column(heading, justify="left" if heading == "shown" else "right")
    surest = []
    for kind, pictures in kinds.items():
        results = analysis.certainty(network, pictures)
        favourite = f"{results.favourite} ({results.favourite_share:.0%})"
        table.add_row(kind, f"{results.one_lit:.1%}", f"{results.certain:.1%}", favourite)
        activations = network.forward(pictures).activations
        first = np.argsort(-activations.max(axis=1), kind="stable")[:4]
        surest += [(pictures[i], f"{activations[i].argmax()}: {activations[i].max():.3f}") for i in first]
    Console().print(table)
    if png_file:
        from export import plots  # noqa: PLC0415 (matplotlib is an extra)

        shown, titles = np.stack([image for image, _ in surest]), [title for _, title in surest]
        write_file(png_file, lambda path: plots.images(shown, titles, path))


def synthetic(
    seed: Annotated[int, typer.Option(min=0, help="another seed draws other digits")] = 0,
    out: Annotated[Path | None, output_file("--out", help="the PNG to write", show_default=str(SYNTHETIC))] = None,
) -> None:
    """Draw synthetic digits, 10 of each, as `train --synthetic` adds them to MNIST."""
    need("jax", "matplotlib")
    from export import plots, strokes  # noqa: PLC0415 (jax and matplotlib are extras)

    digits = strokes.draw(1_000, Handwriting(), seed)
    rows = [row for digit in range(10) for row in np.flatnonzero(digits.labels == digit)[:10]]
    out = out or in_build(SYNTHETIC)
    write_file(out, lambda path: plots.images(digits.images[rows], [str(digits.labels[row]) for row in rows], path))
    print(f"wrote {out}")


def _points(share: float) -> str:
    """Return a share as percentage points; empty if it is 0."""
    return f"{100 * share:.1f}" if abs(share) >= 0.0005 else "."


def _network(activation: Activation, weights: Path | None) -> Network:
    return checkpoint.load(weights or checkpoint.committed(activation)).network

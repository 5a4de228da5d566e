"""The commands that fetch the digits, train the networks on them, and measure a model.onnx."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from commandline import startup
from commandline.options import output_file, output_folder
from export import checkpoint, mnist, provenance, weaknesses
from export import evaluate as evaluation
from export.network import Activation
from export.recipe import Distortion, Recipe
from export.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from export.evaluate import Measurement
    from export.mnist import Examples, Mnist
    from export.network import Network
    from export.train import Epoch

DEFAULT = Recipe()
RECIPE = "Recipe"
"""A heading of `--help`."""

Folder = Annotated[Path, typer.Option("--data", help="the folder with MNIST's four files, plain or .gz")]
Hidden = Annotated[Activation, typer.Option(help="hidden units: the film's sigmoids, or the ReLUs of later years")]
Seeds = Annotated[
    int,
    typer.Option(min=1, max=64, help="networks trained at once, each from other first weights", rich_help_panel=RECIPE),
]
Epochs = Annotated[
    int, typer.Option(min=1, help="passes over the training digits; 5 give a first idea", rich_help_panel=RECIPE)
]
Batch = Annotated[
    int,
    typer.Option(min=1, max=50_000, help="digits whose slopes make one step downhill", rich_help_panel=RECIPE),
]
Rate = Annotated[
    float, typer.Option(min=0, help="the longest step; it shrinks to 0 on a cosine", rich_help_panel=RECIPE)
]
Decay = Annotated[
    float, typer.Option(min=0, help="how hard each step pulls the weights towards 0", rich_help_panel=RECIPE)
]
Brightness = Annotated[
    float,
    typer.Option(min=0, help="how much it counts that one output alone is bright; 0: not", rich_help_panel=RECIPE),
]
Strength = Annotated[
    float,
    typer.Option(min=0, max=5, help="how far training digits are bent; 1: as usual, 0: not", rich_help_panel=RECIPE),
]
Synthetic = Annotated[
    float,
    typer.Option(
        min=0,
        max=10,
        help="digits drawn from strokes for each of MNIST's; 0.1 helps with other hands; 0: none",
        rich_help_panel=RECIPE,
    ),
]
Trial = Annotated[bool, typer.Option("--trial", help="stop after measuring on the held-out digits: to compare recipes")]
Out = Annotated[
    Path | None,
    output_file(
        "--out",
        help="file to write, and the learning curve next to it",
        show_default="build/ACTIVATION.safetensors",
    ),
]
Record = Annotated[
    Path | None,
    output_file(
        "--record", help="write here accuracy and first-layer weights by epoch of the held-out run, for the playground"
    ),
]
Model = Annotated[Path, typer.Argument(help="the file that `python -m export onnx` wrote")]
Figures = Annotated[Path | None, output_file("--json", help="write the figures here too")]
Weaknesses = Annotated[bool, typer.Option("--weaknesses", help="shifted, turned, noisy, inverted and blank ones too")]
Picture = Annotated[Path | None, output_file("--png", help="draw here which digit was read as which")]


class CommandError(Exception):
    """A command cannot run; the text has the missing part."""


def data(
    folder: Annotated[
        Path, output_folder("--folder", help="the folder to put MNIST's four files into; it is made")
    ] = mnist.FOLDER,
) -> None:
    """Fetch MNIST, 60,000 training and 10,000 test digits, and check every file's sha256."""
    end_in_order_at_ctrl_c()
    mnist.fetch(folder)
    digits = mnist.load(folder)
    print(f"{folder}: {len(digits.train):,} training and {len(digits.test):,} test digits")


def train(
    activation: Hidden = DEFAULT.activation,
    seeds: Seeds = DEFAULT.seeds,
    epochs: Epochs = DEFAULT.epochs,
    batch: Batch = DEFAULT.batch,
    learning_rate: Rate = DEFAULT.learning_rate,
    weight_decay: Decay = DEFAULT.weight_decay,
    brightness: Brightness = DEFAULT.brightness,
    distortion: Strength = 1.0,
    synthetic: Synthetic = DEFAULT.synthetic_share,
    trial: Trial = False,
    folder: Folder = mnist.FOLDER,
    out: Out = None,
    record: Record = None,
) -> None:
    """Train the network 784-16-16-10 on MNIST and write its weights, how they came about and how well they do.

    The recipe runs first on 50,000 of the training digits and is measured on the 10,000 held out; then on all 60,000.
    The test digits are read once, at the end, to measure all the seeds; the first seed's network is kept.
    """
    need("jax", "optax", "matplotlib")
    digits = mnist.load(folder)
    limits = Distortion().times(distortion)
    recipe = Recipe(activation, seeds, epochs, batch, learning_rate, weight_decay, brightness, limits, synthetic)
    out = out or in_build(Path("build") / f"{activation}.safetensors")
    _prepare(out)
    recording = Recording(digits.validation) if record else None
    drawn = _synthetic(recipe)
    validation = _tried(recipe, digits, drawn, out.with_suffix(".png"), recording)
    if record and recording:
        write_file(record, recording.save)
    if not trial:
        _final(recipe, digits, drawn, validation, out)


def evaluate(
    model: Model = Path("model.onnx"),
    folder: Folder = mnist.FOLDER,
    json_file: Figures = None,
    png_file: Picture = None,
    weak: Weaknesses = False,
) -> None:
    """Measure a model.onnx on the 10,000 test digits, through ONNX Runtime."""
    if png_file:
        need("matplotlib")
    test = mnist.load(folder).test
    measurement = evaluation.measure(model, test)
    console = Console()
    console.print(*evaluation.tables(measurement), sep="\n")
    console.print(
        f"{measurement.accuracy:.2%} of {measurement.images:,} digits read correctly; "
        f"exactly one output over {evaluation.BRIGHT} on {measurement.one_bright:.2%}"
    )
    if weak:
        console.print(weaknesses.table(weaknesses.measure(model, test)))
    if json_file:
        write_file(json_file, lambda path: path.write_text(json.dumps(measurement.to_json(), indent=2) + "\n"))
    if png_file:
        from export import plots  # noqa: PLC0415 (matplotlib is an extra)

        write_file(png_file, lambda path: plots.confusion(measurement, path))


def _tried(
    recipe: Recipe, digits: Mnist, synthetic: Examples | None, curve: Path, recording: Recording | None
) -> list[Measurement]:
    """Return the recipe's results on the held-out digits; draw the learning curve."""
    from export import plots  # noqa: PLC0415 (matplotlib is an extra)

    history: list[Epoch] = []
    networks = _fit("held out", recipe, (digits.fitting, synthetic), digits.validation, history, recording)
    measurements = provenance.measurements(networks, digits.validation)
    _show("on the 10,000 held-out training digits, trained on the other 50,000", measurements)
    title = f"784-16-16-10, {recipe.activation} hidden units, {recipe.seeds} seeds"
    write_file(curve, lambda path: plots.learning_curve(history, title, path))
    print(f"wrote {curve}")
    return measurements


def _final(recipe: Recipe, digits: Mnist, synthetic: Examples | None, validation: list[Measurement], out: Path) -> None:
    """Train on all 60,000 digits, measure on the test digits, and write the first seed's network."""
    networks = _fit("all digits", recipe, (digits.train, synthetic), None, [])
    test = provenance.measurements(networks, digits.test)
    _show("on the 10,000 test digits, trained on all 60,000", test)
    command = shlex.join(["python", "-m", "export", *sys.argv[1:]])
    trained = checkpoint.Checkpoint(
        networks[provenance.KEPT_SEED], provenance.made(recipe, command), provenance.measured(validation, test)
    )
    write_file(out, lambda path: checkpoint.save(trained, path))
    print(f"wrote {out}")


def _synthetic(recipe: Recipe) -> Examples | None:
    """Draw the recipe's synthetic digits, if any."""
    if not recipe.synthetic_share:
        return None
    from export import strokes  # noqa: PLC0415 (jax is an extra, and takes a second to import)

    print(f"drawing {recipe.synthetic_pool:,} synthetic digits", file=sys.stderr)
    return strokes.draw(recipe.synthetic_pool, recipe.handwriting, seed=0)


def _fit(
    task: str,
    recipe: Recipe,
    examples: tuple[Examples, Examples | None],
    held_out: Examples | None,
    history: list[Epoch],
    recording: Recording | None = None,
) -> list[Network]:
    from export import train as training  # noqa: PLC0415 (jax is an extra, and takes a second to import)

    end_in_order_at_ctrl_c()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(task, total=recipe.epochs)

        def on_epoch(epoch: Epoch) -> None:
            history.append(epoch)
            right = "" if epoch.accuracy is None else f", {epoch.accuracy.mean():.2%} right"
            progress.update(bar, advance=1, description=f"{task}: loss {epoch.loss.mean():.4f}{right}")

        try:
            record = recording.add if recording else None
            return training.fit(recipe, examples[0], held_out, on_epoch, record, examples[1])
        except ValueError as e:
            raise CommandError(f"training has diverged ({e}): --learning-rate or --brightness is too large") from e


def _show(title: str, measurements: Sequence[Measurement]) -> None:
    """A table of the seeds: the share read correctly, and the share with exactly one output bright."""
    table = Table()
    for heading in ("seed", "accuracy", "one bright"):
        table.add_column(heading, justify="right")
    for seed, m in enumerate(measurements):
        table.add_row(str(seed), f"{m.accuracy:.2%}", f"{m.one_bright:.2%}", end_section=m is measurements[-1])
    accuracy = provenance.spread([m.accuracy for m in measurements])
    bright = provenance.spread([m.one_bright for m in measurements])
    for name in ("mean", "min", "max"):
        table.add_row(name, f"{accuracy[name]:.2%}", f"{bright[name]:.2%}")
    Console().print(title, table, sep="\n")


def end_in_order_at_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from here on: files need a cleanup, and slow imports are complete."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's job in the background has it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def need(*modules: str) -> None:
    """Raise CommandError, with the command that installs them, unless all modules are installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise CommandError(startup.missing_extra("train", *missing))


def _prepare(path: Path) -> None:
    """Check before an hour's work, not after it, that its result can be written."""
    write_file(path.with_suffix(".tmp"), _touch)


def _touch(probe: Path) -> None:
    probe.touch()
    probe.unlink()


def in_build(path: Path) -> Path:
    """Return the path of a file, by default in build/, and create that folder."""
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as e:
        raise CommandError(f"{path.parent}: cannot be made: {e.strerror}") from e
    return path


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write the file; CommandError if that fails."""
    try:
        write(path)
    except OSError as e:
        raise CommandError(f"{path}: cannot be written: {e.strerror}") from e

"""The command line of scoring, a command of digitserve; it imports slow modules only when it runs."""

from __future__ import annotations

import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from commandline import startup
from commandline.options import Version, output_folder

if TYPE_CHECKING:
    from digitserve.score.run import Plan
    from digitserve.score.writing import Scored

EXIT_REJECTED, EXIT_FAILED, EXIT_INTERRUPTED = 1, 5, 130
CORES = os.cpu_count() or 1
PARQUET, ENGINE = "Parquet", "Engine"
"""Headings of `--help`."""

Source = Annotated[
    Path, typer.Argument(metavar="INPUT", help="Parquet, IDX (plain or gzipped) or picture, or a folder of any of them")
]
Output = Annotated[
    Path, output_folder("--output", help="folder for the answers; it is made, or a run that stopped is taken up")
]
Model = Annotated[Path, typer.Option(help="the file that `digitserve export` wrote")]
Column = Annotated[str, typer.Option(help="Parquet column of the pixels", rich_help_panel=PARQUET)]
IdColumn = Annotated[
    str,
    typer.Option(help="Parquet column of ids; without one a row is FILE#ROW, counted from 0", rich_help_panel=PARQUET),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1, max=4096, help="processes, or with Ray actors", show_default="one a core", rich_help_panel=ENGINE
    ),
]
Engine = Annotated[
    Literal["auto", "local", "ray"],
    typer.Option(
        help="local: processes of this machine; ray: Ray Data; auto: ray with --ray-address, else local",
        rich_help_panel=ENGINE,
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        envvar="RAY_ADDRESS",
        help="a Ray cluster; all its nodes must see INPUT, --output and --model",
        rich_help_panel=ENGINE,
    ),
]
ShardRows = Annotated[
    int, typer.Option(min=1, max=100_000_000, help="images in one file of the output, and between two savings")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="delete the run that the folder holds")]


def score(
    source: Source,
    output: Output,
    model: Model = Path("model.onnx"),
    column: Column = "pixels",
    id_column: IdColumn = "",
    workers: Workers = CORES,
    engine: Engine = "auto",
    ray_address: RayAddress = "",
    shard_rows: ShardRows = 262_144,
    overwrite: Overwrite = False,
    version: Version = False,  # noqa: ARG001 (its callback answers)
) -> None:
    """Read millions of digits from files into Parquet: id, digit, activations, model version. No server is needed.

    After an interruption, even by kill -9, the same command resumes the run. _errors.jsonl in the output has the
    unreadable rows with their reasons.

    Parquet pixels are binary of 784 bytes, lists of 784 numbers (integers 0 to 255 or floats 0 to 1), or pictures as
    binary. Pictures are converted to MNIST's form first. Read the output as one table:
    `pyarrow.dataset.dataset(DIR)`, `pandas.read_parquet(DIR)`.

    Exit status: 0 success; 1 some rows are unreadable; 2 invalid usage; 5 the run failed; 130 Ctrl-C.
    """
    if find_spec("pyarrow") is None:
        _end(startup.missing_extra("score", "pyarrow"))
    from digitserve.score import engines  # noqa: PLC0415 (pyarrow and ONNX Runtime take a second, which --help does not need)
    from digitserve.score.errors import ScoreError  # noqa: PLC0415
    from digitserve.score.inputs import Columns  # noqa: PLC0415
    from digitserve.score.run import Options, run  # noqa: PLC0415

    chosen: Literal["local", "ray"] = "ray" if engine == "ray" or (engine == "auto" and ray_address) else "local"
    if chosen == "ray" and not engines.has_ray():
        _end(startup.missing_extra("ray", "ray"))
    options = Options(
        source, output, model, Columns(column, id_column), chosen, workers, shard_rows, overwrite, ray_address
    )
    report = _Report(output)
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's job in the background has it
            signal.signal(signal.SIGINT, signal.default_int_handler)  # unfinished files are removed
        with report.bar:
            totals = run(options, report.on_start, report.on_progress)
    except ScoreError as e:
        _end(str(e))
    except KeyboardInterrupt:
        _end(f"stopped; the same command resumes it from {output}", EXIT_INTERRUPTED)
    report.end(totals.rows, totals.rejected)
    if totals.rejected:
        raise typer.Exit(EXIT_REJECTED)


class _Report:
    """The progress on the terminal, on standard error, as all output except answers."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self.console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images"), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
        self._task = self.bar.add_task("", total=None, rate="", visible=False)
        self._scored = 0
        self._began = time.monotonic()

    def on_start(self, plan: Plan) -> None:
        """Report the work, and the part that an earlier run completed."""
        if plan.shards_done:
            self._print(f"resuming: {plan.shards_done:,} of {plan.shards:,} files are done")
        self._began = time.monotonic()
        self.bar.update(self._task, total=plan.images, completed=plan.images_done, visible=plan.images > 0)

    def on_progress(self, scored: Scored) -> None:
        """A shard is done."""
        self._scored += scored.rows + scored.rejected
        rate = self._scored / max(time.monotonic() - self._began, 1e-3)
        self.bar.update(self._task, advance=scored.rows + scored.rejected, rate=f"{rate:,.0f}/s")

    def end(self, rows: int, rejected: int) -> None:
        """Report the result."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        if self._scored:
            now = f", {self._scored:,} now in {seconds:.1f} s: {self._scored / seconds:,.0f} a second"
        else:
            now = "; complete since an earlier run; --overwrite repeats it"
        self._print(f"{rows:,} images scored into {self._output}{now}")
        if rejected:
            self._print(f"{rejected:,} unreadable rows: see {self._output / '_errors.jsonl'}")

    def _print(self, message: str) -> None:
        self.console.print(message, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _end(message: str, status: int = EXIT_FAILED) -> None:
    print(message, file=sys.stderr)
    raise typer.Exit(status)

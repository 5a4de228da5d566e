"""python -m bench: measure the servers side by side, interleaved, over several starts; write table, JSON and plots."""

from __future__ import annotations

from commandline import startup

startup.exit_on_interrupt(__name__)

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import bare_onnxruntime, curves, load, report, servers
from bench.messages import sample_images
from bench.scenarios import SCENARIOS, Scenario
from bench.server import ABOUT, MODEL, Server, ServerUnavailable
from commandline import streams
from commandline.options import Version, output_folder

if TYPE_CHECKING:
    from bench.servers import Running

ALL = ",".join(servers.SERVERS)
_ABOUT = "\n".join(f"- `{name}`: {about}" for name, about in ABOUT.items())

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _known_names(value: str) -> str:
    """Take a server as `--names` or the tables name it: `noop-tuned` or `no-op tuned`."""
    names = [
        name.strip().removeprefix("digitserve ").replace(" ", "-").replace("no-op", "noop") for name in value.split(",")
    ]
    if unknown := [name for name in names if name not in servers.SERVERS]:
        listed = "\n".join(f"  {name}: {about}" for name, about in ABOUT.items())
        raise typer.BadParameter(f"no server named {', '.join(map(repr, unknown))}; expected some of\n{listed}")
    return ",".join(names)


def _some_rows(value: str) -> str:
    if not any(value in row.name for row in SCENARIOS):
        listed = "\n".join(f"  {row.name}" for row in SCENARIOS)
        raise typer.BadParameter(f"no row's name contains {value!r}; expected a part of one of\n{listed}")
    return value


Starts = Annotated[int, typer.Option(min=1, help="number of starts of every server, since one start can be slow")]
Rounds = Annotated[int, typer.Option(min=1, help="rounds a start; in each round every server takes its turn")]
Names = Annotated[str, typer.Option(help="the servers, separated by commas", show_default="all", callback=_known_names)]
Only = Annotated[str, typer.Option(help="only rows whose name contains this", callback=_some_rows)]
Out = Annotated[
    Path | None,
    output_folder(
        "--out",
        help="folder for results.json, results.md and the plots; it is made",
        show_default=str(report.FOLDER),
    ),
]
Curves = Annotated[bool, typer.Option(help="throughput against latency, and cost as connections grow, too")]


@app.command(
    help="Compare this server with a no-op server, bare ONNX Runtime, and its peers.\n\n"
    f"The servers that --names takes:\n\n{_ABOUT}\n\n"
    "Exit status: 0 measured; 1 something that it needs is missing; 2 wrong usage."
)
def measure(
    starts: Starts = 3,
    rounds: Rounds = 2,
    names: Names = ALL,
    only: Only = "",
    out: Out = None,
    with_curves: Curves = True,
    version: Version = False,  # noqa: ARG001 (its callback answers)
) -> None:
    """Measure every row of every server, start by start and round by round, and write the results."""
    if not load.have_h2load():
        sys.exit(f"bench: {load.H2LOAD_MISSING}")
    if not MODEL.exists():
        sys.exit(f"bench: {MODEL.name} is missing: `make model.onnx` writes it")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # stops every server that was started
    chosen, missing = servers.available(names.split(","))
    rows = [row for row in SCENARIOS if only in row.name]
    results = report.Results(missing=missing)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=starts * rounds * len(rows))
        for number in range(starts):
            running = _started(chosen, results)
            try:
                counts = _counts(running, rows)
                for _ in range(rounds):
                    for row in rows:
                        progress.update(bar, description=f"start {number + 1}: {row.name}")
                        _measure(row, running, counts, results)
                        progress.advance(bar)
                results.add_memory(running, "megabytes_after_load")
                if with_curves and number == starts - 1:
                    progress.update(bar, description="curves")
                    report.write(results, rows, out)  # the results so far, in case of a failure
                    results.curves = curves.measure(running)
            finally:
                for one in running:
                    one.stop()
    results.bare = bare_onnxruntime.images_a_second()
    report.write(results, rows, out)


def _started(chosen: list[Server], results: report.Results) -> list[Running]:
    image = sample_images(1)[0]
    running: list[Running] = []
    for server in chosen:
        if server.name in results.missing:
            continue
        try:
            running.append(servers.start(server, image, digit=0))
        except ServerUnavailable as e:
            results.drop(server, str(e))
    time.sleep(1)
    for one in running:
        results.add(one.server, "seconds_to_first_answer", one.seconds)
    results.add_memory(running, "megabytes_at_rest")
    return running


def _counts(running: list[Running], rows: list[Scenario]) -> dict[tuple[str, str], int]:
    return {(one.server.name, row.name): row.count_for(one) for row in rows for one in running if row.path(one)}


def _measure(
    row: Scenario, running: list[Running], counts: dict[tuple[str, str], int], results: report.Results
) -> None:
    for one in running:
        if row.path(one):
            results.add_load(one.server, row, row.measure(one, counts[one.server.name, row.name]))


def main() -> int:
    """Run the command; return the exit status that `--help` documents."""
    return streams.run(lambda: app(prog_name=startup.program_name("bench")))


if __name__ == "__main__":
    sys.exit(main())

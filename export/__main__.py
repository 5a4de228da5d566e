"""python -m export: train the network, write it as ONNX, measure it."""

from __future__ import annotations

from commandline import startup

startup.exit_on_interrupt(__name__)

import sys
from pathlib import Path
from typing import Annotated

import typer

from commandline import sample_digits, streams
from commandline.options import Version, output_file
from export import checkpoint, commands_analysis, commands_train, evaluate, graph, mnist
from export.network import Activation  # noqa: TC001 (typer reads it)

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Train the network, write it as ONNX, measure it. Without a command: `onnx`, which writes model.onnx.

    Exit status: 0 success; 1 failure, with one message; 2 invalid usage.""",
)


@app.callback()
def _options(context: typer.Context, version: Version = False) -> None:  # noqa: ARG001 (its callback answers)
    """Process the options before the command, and write model.onnx without a command."""
    if context.invoked_subcommand is None:
        onnx()


app.command()(commands_train.data)
app.command()(commands_train.train)
app.command()(commands_train.evaluate)
app.command()(commands_analysis.draw)
app.command()(commands_analysis.ablate)
app.command()(commands_analysis.mistakes)
app.command()(commands_analysis.out_of_distribution)
app.command()(commands_analysis.synthetic)


@app.command()
def onnx(
    activation: Annotated[Activation, typer.Option(help="which committed network: its hidden units")] = "sigmoid",
    weights: commands_analysis.Weights = None,
    out: Annotated[Path, output_file("--out", help="the file to write")] = Path("model.onnx"),
    input_form: Annotated[
        graph.InputForm, typer.Option("--input", help="uint8 pixels 0..255, which the service runs; or float32 0..1")
    ] = "uint8",
    version: Annotated[int, typer.Option(min=1, help="the model version that replies will name")] = 1,
    sample: Annotated[
        Path,
        typer.Option(
            help="IDX images to compare ONNX Runtime and numpy on",
            dir_okay=False,
            show_default="100 of MNIST, in samples",
        ),
    ] = sample_digits.IMAGES,
) -> None:
    """Write a trained network as an ONNX graph and check it against the numpy reference on real digits."""
    commands_train.end_in_order_at_ctrl_c()
    trained = checkpoint.load(weights or checkpoint.committed(activation))
    digits = mnist.read_idx(sample).reshape(-1, 784)
    graph.write(graph.build(trained, version=str(version), input_form=input_form), out)
    worst = graph.verify(out, trained.network, digits)
    print(
        f"wrote {out}: {trained.network.activation}, {out.stat().st_size:,} bytes, version {version};\n"
        f"within {worst:.1e} of numpy on {len(digits)} digits"
    )


def main() -> int:
    """Run a command; return 1, after one message, if it fails, and 2 for invalid usage."""
    return streams.run(_main)


def _main() -> int:
    try:
        app(prog_name=startup.program_name("export"))
    except (
        checkpoint.CheckpointError,
        commands_train.CommandError,
        evaluate.ModelError,
        graph.ExportError,
        mnist.DataError,
    ) as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

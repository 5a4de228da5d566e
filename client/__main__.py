"""python -m client: have handwritten digits read by the service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console

from client import demo as demonstration
from client import render
from client.digits import TIMEOUT, DigitsClient
from client.image import ImageError, read
from client.messages import DigitsError, Predictions

SAMPLES = Path(__file__).parent.parent / "samples"

UNREADABLE, UNREACHABLE, REFUSED = 1, 3, 4

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Have handwritten digits read by the service.

    Exit status: 0 all was read; 1 a file could not be read as an image (the others were); 2 wrong usage; 3 the server
    cannot be reached or is not serving; 4 the server refused.""",
)

Address = Annotated[str, typer.Option(envvar="DIGITS_ADDRESS", help="host:port of the server")]
Timeout = Annotated[float, typer.Option(min=0.001, max=3600, help="seconds that a call may take")]


@app.command()
def predict(
    files: Annotated[
        list[Path], typer.Argument(help="PNG, JPEG or any other picture of one digit, or an IDX file of many")
    ],
    address: Address = "localhost:50051",
    timeout: Timeout = TIMEOUT,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on standard output")] = False,
    hidden: Annotated[bool, typer.Option("--hidden", help="the two hidden layers too")] = False,
    limit: Annotated[int, typer.Option(min=1, help="images taken from one IDX file")] = 10,
) -> None:
    """Read the digit in each file: its picture, the answer, and the ten activations."""
    console, found, unreadable = Console(), [], False
    with DigitsClient(address, timeout=timeout) as client:
        for path in files:
            try:
                pixels = read(path)
            except ImageError as e:
                _complain(str(e))
                unreadable = True
                continue
            taken = pixels[:limit]
            answers = client.predict(taken, include_hidden_layers=hidden)
            if as_json:
                found += [_as_dict(path, row, answers) for row in range(len(taken))]
                continue
            for row, image in enumerate(taken):
                title = str(path) if len(pixels) == 1 else f"{path}, image {row}"
                console.print(render.card(image, answers, row, title=title, console=console))
                if hidden:
                    console.print(render.layers(answers, row))
            if len(pixels) > limit:
                console.print(f"{len(pixels) - limit:,} more images in {path}; --limit {len(pixels)} reads them all")
    if as_json:
        print(json.dumps(found, indent=2))
    if unreadable:
        raise typer.Exit(UNREADABLE)


@app.command()
def demo(
    address: Address = "localhost:50051",
    wait: Annotated[float, typer.Option(min=0, max=3600, help="seconds to wait for the server to say SERVING")] = 5,
    images: Annotated[Path, typer.Option(help="IDX file of digits")] = SAMPLES / "digits-100-images-idx3-ubyte",
    labels: Annotated[Path, typer.Option(help="IDX file of what they are")] = SAMPLES / "digits-100-labels-idx1-ubyte",
) -> None:
    """Send ten real digits, one of each, show the answers, and measure what a call takes."""
    console = Console()
    with DigitsClient(address) as client:
        with Console(stderr=True).status(f"waiting for {address} to say SERVING"):
            client.wait_until_serving(wait)
        try:
            shown = images.relative_to(Path.cwd())
        except ValueError:
            shown = images
        demonstration.run(client, address, shown, labels, console)


@app.command()
def health(
    address: Address = "localhost:50051",
    service: Annotated[str, typer.Option(help="a service's name; empty is the server as a whole")] = "",
    timeout: Timeout = 1.0,
) -> None:
    """Exit with 0 where the server says SERVING, with 1 otherwise."""
    with DigitsClient(address) as client:
        serving = client.is_serving(service, timeout=timeout)
    print("SERVING" if serving else "NOT SERVING")
    raise typer.Exit(0 if serving else 1)


def _as_dict(path: Path, row: int, answers: Predictions) -> dict[str, Any]:
    layers = {"layer1": answers.layer1, "layer2": answers.layer2}
    return {
        "file": str(path),
        "image": row,
        "digit": int(answers.digits[row]),
        "activations": _rounded(answers.activations[row]),
        **{name: _rounded(layer[row]) for name, layer in layers.items() if layer is not None},
        "model_version": answers.model_version,
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 6) for value in values]


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main() -> int:
    """Run a command; the exit status as `--help` tells it."""
    try:
        app()
    except ImageError as e:
        _complain(str(e))
        return UNREADABLE
    except DigitsError as e:
        _complain(f"{e} (request id {e.request_id})" if e.request_id else str(e))
        unreachable = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return UNREACHABLE if e.code in unreachable else REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m client: have handwritten digits read by the service."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import typer
from PIL import Image
from rich.console import Console

from client import demo as demonstration
from client import render
from client.channel import TIMEOUT
from client.digits import DigitsClient
from client.image import ImageError, read
from client.messages import DigitsError, Predictions
from client.options import Address, TlsCa, TlsCert, TlsKey, TokenFile
from score.command import score

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

SAMPLES = Path(__file__).parent.parent / "samples"

UNREADABLE = NOT_SERVING = 1
UNREACHABLE, REFUSED = 3, 4

IN_ONE_CALL = 256
"""Images: an IDX file of 60,000 goes in many calls, each well within what a server takes."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Have handwritten digits read by the service.

    Exit status: 0 all was read; 1 a file could not be read as an image (the others were), `health` says otherwise than
    SERVING; 2 wrong usage; 3 the server
    cannot be reached or is not serving; 4 the server refused; 5 `score` could not start or go on.""",
)


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
    explain: Annotated[
        bool, typer.Option("--explain", help="beside each picture, which pixels spoke for the answer and which against")
    ] = False,
    png: Annotated[Path | None, typer.Option("--explain-png", help="write the pictures of --explain here too")] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Read the digit in each file: its picture, the answer, and the ten activations."""
    console, found, unreadable = Console(), [], False
    maps: list[Image.Image] = []
    with _connected(address, timeout, tls_ca, tls_cert, tls_key, token_file) as client:
        for path in files:
            try:
                pixels = read(path)
            except ImageError as e:
                _complain(str(e))
                unreadable = True
                continue
            for row, image, answer in _answers(client, pixels[:limit], hidden=hidden):
                if as_json:
                    found.append(_as_dict(path, row, answer))
                else:
                    title = str(path) if len(pixels) == 1 else f"{path}, image {row}"
                    _show(console, image, answer, title)
                if explain or png:
                    maps.append(_explain(client, image, None if as_json else console))
            if not as_json:
                _tell_of_the_rest(console, path, len(pixels), limit)
    if as_json:
        print(json.dumps(found, indent=2))
    _save(maps, png)
    if unreadable:
        raise typer.Exit(UNREADABLE)


@app.command()
def demo(
    address: Address = "localhost:50051",
    wait: Annotated[float, typer.Option(min=0, max=3600, help="seconds to wait for the server to say SERVING")] = 5,
    images: Annotated[Path, typer.Option(help="IDX file of digits")] = SAMPLES / "digits-100-images-idx3-ubyte",
    labels: Annotated[Path, typer.Option(help="IDX file of what they are")] = SAMPLES / "digits-100-labels-idx1-ubyte",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Send ten real digits, one of each, show the answers, and measure what a call takes."""
    console = Console()
    with _connected(address, TIMEOUT, tls_ca, tls_cert, tls_key, token_file) as client:
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
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Exit with 0 where the server says SERVING, with 1 where it says otherwise; 3 and 4 as ever."""
    with _connected(address, TIMEOUT, tls_ca, tls_cert, tls_key, token_file) as client:
        status = client.health(service, timeout=timeout)
    print(status)
    raise typer.Exit(0 if status == "SERVING" else NOT_SERVING)


app.command()(score)


def _connected(
    address: str, timeout: float, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, token: Path | None
) -> DigitsClient:
    """A client, or wrong usage where the files are not what they should be."""
    try:
        return DigitsClient(
            address, timeout=timeout, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, token_file=token
        )
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None


def _answers(
    client: DigitsClient, pixels: npt.NDArray[np.uint8], *, hidden: bool
) -> Iterator[tuple[int, npt.NDArray[np.uint8], Predictions]]:
    """The number of each image, the image, and the answer to it alone."""
    for first in range(0, len(pixels), IN_ONE_CALL):
        batch = pixels[first : first + IN_ONE_CALL]
        answers = client.predict(batch, include_hidden_layers=hidden)
        for row, image in enumerate(batch):
            yield first + row, image, answers[row]


def _show(console: Console, image: npt.NDArray[np.uint8], answer: Predictions, title: str) -> None:
    console.print(render.card(image, answer, 0, title=title, console=console))
    if answer.layer1 is not None:
        console.print(render.layers(answer, 0))


def _tell_of_the_rest(console: Console, path: Path, images: int, limit: int) -> None:
    if images > limit:
        console.print(f"{images - limit:,} more images in {path}; --limit {images} reads them all")


def _explain(client: DigitsClient, image: npt.NDArray[np.uint8], console: Console | None) -> Image.Image:
    """Ask why the image was read so; show it, and give it as a picture."""
    why = client.explain(image).explanations[0][0]
    if console:
        console.print(render.explained(image, why, console))
    return render.explained_png(image, why)


def _save(maps: list[Image.Image], path: Path | None) -> None:
    """One picture above the other."""
    if not maps or path is None:
        return
    sheet = Image.new("RGB", (maps[0].width, sum(one.height for one in maps)))
    for i, one in enumerate(maps):
        sheet.paste(one, (0, i * one.height))
    try:
        sheet.save(path, format="PNG")
    except OSError as e:
        raise typer.BadParameter(f"{path} cannot be written: {e.strerror}", param_hint="--explain-png") from None


def _as_dict(path: Path, row: int, answer: Predictions) -> dict[str, Any]:
    layers = {"layer1": answer.layer1, "layer2": answer.layer2}
    return {
        "file": str(path),
        "image": row,
        "digit": int(answer.digits[0]),
        "activations": _rounded(answer.activations[0]),
        **{name: _rounded(layer[0]) for name, layer in layers.items() if layer is not None},
        "model_version": answer.model_version,
        "request_id": answer.request_id,
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 6) for value in values]


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main() -> int:
    """Run a command; the exit status as `--help` tells it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a file's name may hold what the terminal cannot show
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

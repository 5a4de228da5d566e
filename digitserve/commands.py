"""The commands of digitserve: those that call a server, scoring, and the programs under their names.

The client and slow modules are imported when a command runs: `--help` needs neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commandline import sample_digits, startup
from commandline.options import Version, output_file, output_folder
from commandline.server_options import GRPC, Address, TlsCa, TlsCert, TlsKey, TokenFile
from digitserve.passthrough import add_program
from digitserve.score.command import score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from digitserve_client import DigitsClient
    from PIL import Image

# gRPC's C core writes to standard error in its own format; the error of a call has the relevant part. Read at
# its import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

UNREADABLE = NOT_SERVING = 1
UNREACHABLE, REJECTED = 3, 4
TIMEOUT = 5.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=startup.is_installed_script(),
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Serve a neural network that reads handwritten digits, over gRPC.

    To begin: `digitserve export` writes model.onnx, `digitserve serve` serves it, and `digitserve demo`, in another
    terminal, sends 10 digits. `digitserve COMMAND --help` lists the options of each command.

    Exit status of `predict`, `demo`, `health` and `score`: 0 success. 1 a file is no image (the others were read),
    `health` is not SERVING, or standard output failed. 2 invalid usage. 3 the server is unreachable or not serving.
    4 the server rejected the call. 5 `score` failed.""",
)

Timeout = Annotated[
    float, typer.Option(min=0.001, max=3600, help="timeout of a call, in seconds", rich_help_panel=GRPC)
]
Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE",
        help="PNG, JPEG or any other picture of one digit, or an IDX file of many; - for standard input",
        show_default=False,
    ),
]


@app.callback()
def _options(version: Version = False) -> None:
    """Take the options that stand before the command."""


add_program(app, "serve")
add_program(app, "export")


@app.command()
def predict(
    files: Files,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="one JSON document on standard output, with an error for each unreadable file"),
    ] = False,
    hidden: Annotated[bool, typer.Option("--hidden", help="the two hidden layers too")] = False,
    limit: Annotated[int, typer.Option(min=1, help="images taken from one IDX file")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="next to each picture, the pixels for and against the answer")
    ] = False,
    png: Annotated[
        Path | None, output_file("--explain-png", help="write the pictures of --explain into this file too")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="each digit of a picture of several side by side, from left to right")
    ] = False,
    save_png: Annotated[
        Path | None,
        output_folder("--save-png", metavar="FOLDER", help="write each image into this folder as it is sent, 28x28"),
    ] = None,
    address: Address = "localhost:50051",
    timeout: Timeout = TIMEOUT,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Read the digit in each file: show the picture, the answer, and the 10 activations."""
    with _connected(address, timeout, tls_ca, tls_cert, tls_key, token_file) as client:
        from rich.console import Console  # noqa: PLC0415 (see above)

        from digitserve.reading import Reading  # noqa: PLC0415 (see above)

        reading = Reading(
            client,
            None if as_json else Console(),
            limit,
            hidden=hidden,
            explain=explain or png is not None,
            each=each,
            save_to=save_png,
        )
        try:
            reading.read(files)
        finally:
            if as_json:
                print(json.dumps(reading.results, indent=2))
    _save(reading.maps, png)
    if reading.unreadable:
        raise typer.Exit(UNREADABLE)


@app.command()
def health(
    service: Annotated[str, typer.Option(help="a service's name; empty is the server as a whole")] = "",
    address: Address = "localhost:50051",
    timeout: Timeout = 1.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Print the health of the server. Exit status: 0 SERVING; 1 NOT_SERVING; 3 or 4 for a failed call."""
    with _connected(address, TIMEOUT, tls_ca, tls_cert, tls_key, token_file) as client:
        status = client.health(service, timeout=timeout)
    print(status)
    raise typer.Exit(0 if status == "SERVING" else NOT_SERVING)


@app.command()
def demo(
    wait: Annotated[float, typer.Option(min=0, max=3600, help="time to wait for SERVING, in seconds")] = 5,
    images: Annotated[
        Path, typer.Option(help="IDX file of digits", show_default="100 of MNIST, in samples")
    ] = sample_digits.IMAGES,
    labels: Annotated[
        Path, typer.Option(help="IDX file of their labels", show_default="theirs")
    ] = sample_digits.LABELS,
    address: Address = "localhost:50051",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Send 10 real digits, one of each, show the answers, and measure the latency of a call."""
    with _connected(address, TIMEOUT, tls_ca, tls_cert, tls_key, token_file) as client:
        from rich.console import Console  # noqa: PLC0415 (see above)

        from digitserve import demo as demonstration  # noqa: PLC0415 (see above)

        if not client.is_serving():
            _complain(f"waiting for {address} to be SERVING ...")
            client.wait_until_serving(wait)
        folder = Path.cwd()
        shown = images.relative_to(folder) if images.is_relative_to(folder) else images
        demonstration.run(client, address, shown, labels, Console())


app.command()(score)
add_program(app, "play")
add_program(app, "ray")
add_program(app, "bench")


@contextlib.contextmanager
def _connected(
    address: str, timeout: float, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, token: Path | None
) -> Iterator[DigitsClient]:
    """Yield a client; exit with one sentence for wrong usage, an image that is none, and a call that failed."""
    with startup.require_extra("client"):
        import grpc  # noqa: PLC0415 (see above)
        import PIL.Image  # noqa: F401, PLC0415 (see above)
        from digitserve_client import DigitsClient, DigitsError, ImageError  # noqa: PLC0415 (see above)
    try:
        client = DigitsClient(
            address, timeout=timeout, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, token_file=token
        )
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None
    try:
        with client:
            yield client
    except ImageError as e:
        _complain(str(e))
        raise typer.Exit(UNREADABLE) from None
    except DigitsError as e:
        from digitserve.reading import described  # noqa: PLC0415 (see above)

        _complain(described(e))
        unreachable = e.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        raise typer.Exit(UNREACHABLE if unreachable else REJECTED) from None


def _save(maps: list[Image.Image], path: Path | None) -> None:
    """One picture above the other."""
    if not maps or path is None:
        return
    from PIL import Image  # noqa: PLC0415 (see above)

    sheet = Image.new("RGB", (maps[0].width, sum(one.height for one in maps)))
    for i, one in enumerate(maps):
        sheet.paste(one, (0, i * one.height))
    try:
        sheet.save(path, format="PNG")
    except OSError as e:
        raise typer.BadParameter(f"{path} cannot be written: {e.strerror}", param_hint="--explain-png") from None


def _complain(message: str) -> None:
    print(message, file=sys.stderr)

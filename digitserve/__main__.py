"""python -m digitserve: have handwritten digits read by the service."""

from __future__ import annotations

from commandline import startup

startup.exit_on_interrupt(__name__)

import json
import os
import sys
from pathlib import Path
from typing import Annotated

# gRPC's C core writes to standard error in a format of its own; what matters of it is in the error of a call. Read at
# its import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

with startup.require_extra("client"):
    import grpc
    import typer
    from digitserve_client.base import TIMEOUT
    from digitserve_client.client import DigitsClient
    from digitserve_client.image import ImageError
    from digitserve_client.messages import DigitsError
    from PIL import Image
    from rich.console import Console

    from commandline import streams
    from commandline.options import Version, output_file
    from commandline.server_options import GRPC, Address, TlsCa, TlsCert, TlsKey, TokenFile
    from digitserve import demo as demonstration
    from digitserve.reading import Reading, described
    from digitserve.score.command import score

SAMPLES = Path(__file__).parent.parent / "samples"

UNREADABLE = NOT_SERVING = 1
UNREACHABLE, REFUSED = 3, 4

app = typer.Typer(
    no_args_is_help=True,
    add_completion=startup.is_installed_script(),
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Have handwritten digits read by the service.

    Exit status: 0 all was read; 1 a file could not be read as an image (the others were), `health` says otherwise than
    SERVING, or standard output could not be written; 2 wrong usage; 3 the server
    cannot be reached or is not serving; 4 the server refused; 5 `score` could not start or go on.""",
)


Timeout = Annotated[float, typer.Option(min=0.001, max=3600, help="seconds that a call may take", rich_help_panel=GRPC)]
Files = Annotated[
    list[Path],
    typer.Argument(
        help="PNG, JPEG or any other picture of one digit, or an IDX file of many; - for standard input",
        show_default=False,
    ),
]


@app.callback()
def _whole(version: Version = False) -> None:
    """Take what stands before the command."""


@app.command()
def predict(
    files: Files,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON document on standard output, with an error for what was not read")
    ] = False,
    hidden: Annotated[bool, typer.Option("--hidden", help="the two hidden layers too")] = False,
    limit: Annotated[int, typer.Option(min=1, help="images taken from one IDX file")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="beside each picture, which pixels spoke for the answer and which against")
    ] = False,
    png: Annotated[
        Path | None, output_file("--explain-png", help="write the pictures of --explain into this file too")
    ] = None,
    address: Address = "localhost:50051",
    timeout: Timeout = TIMEOUT,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Read the digit in each file: its picture, the answer, and the ten activations."""
    console = None if as_json else Console()
    with _connected(address, timeout, tls_ca, tls_cert, tls_key, token_file) as client:
        reading = Reading(client, console, limit, hidden=hidden, explain=explain or png is not None)
        try:
            reading.read(files)
        finally:
            if as_json:
                print(json.dumps(reading.found, indent=2))
    _save(reading.maps, png)
    if reading.unreadable:
        raise typer.Exit(UNREADABLE)


@app.command()
def demo(
    wait: Annotated[float, typer.Option(min=0, max=3600, help="seconds to wait for the server to say SERVING")] = 5,
    images: Annotated[Path, typer.Option(help="IDX file of digits", show_default="100 of MNIST, in samples")] = SAMPLES
    / "digits-100-images-idx3-ubyte",
    labels: Annotated[Path, typer.Option(help="IDX file of what they are", show_default="theirs")] = SAMPLES
    / "digits-100-labels-idx1-ubyte",
    address: Address = "localhost:50051",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Send ten real digits, one of each, show the answers, and measure what a call takes."""
    console = Console()
    with _connected(address, TIMEOUT, tls_ca, tls_cert, tls_key, token_file) as client:
        if not client.is_serving():
            _complain(f"waiting for {address} to say SERVING ...")
            client.wait_until_serving(wait)
        try:
            shown = images.relative_to(Path.cwd())
        except ValueError:
            shown = images
        demonstration.run(client, address, shown, labels, console)


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


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main() -> int:
    """Run a command; the exit status as `--help` tells it."""
    return streams.run(_main)


def _main() -> int:
    try:
        app()
    except ImageError as e:
        _complain(str(e))
        return UNREADABLE
    except DigitsError as e:
        _complain(described(e))
        unreachable = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return UNREACHABLE if e.code in unreachable else REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m playground: serve the page that looks inside, over a digitserve server."""

from __future__ import annotations

from commandline import startup

startup.exit_on_interrupt(__name__)

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from typing import Annotated

# gRPC's C core writes to standard error in its own format; the page has the relevant part. Read at
# its import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

with startup.require_extra("play"):
    import typer
    import uvicorn

    from commandline import streams
    from commandline.options import Version
    from commandline.server_options import TlsCa, TlsCert, TlsKey, TokenFile
    from playground import browser
    from playground.connection import connector, validate_address
    from playground.gateway import application

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (a browser needs one address, not all of them)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
PAGE, SERVER = "Page", "Server"
"""Headings of `--help`."""


def _address(value: str) -> str:
    try:
        return validate_address(value)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None


@app.command()
def play(
    host: Annotated[
        str, typer.Option(envvar="PLAY_HOST", help="address to listen on; 0.0.0.0 for all", rich_help_panel=PAGE)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="PLAY_PORT", min=0, max=65535, help="port of the page; 0 takes a free one", rich_help_panel=PAGE
        ),
    ] = 8080,
    address: Annotated[
        str,
        typer.Option(
            envvar="DIGITS_ADDRESS",
            help="host:port or unix:PATH of the server, for gRPC; http://host:port or https://host:port of its "
            "--http-port, for HTTP",
            callback=_address,
            rich_help_panel=SERVER,
        ),
    ] = "localhost:50051",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    compare: Annotated[
        str,
        typer.Option(
            envvar="PLAY_COMPARE",
            help="address of a second server, such as one with the ReLU network, with the same credentials",
            callback=lambda value: value and _address(value),
            rich_help_panel=PAGE,
        ),
    ] = "",
    open_browser: Annotated[
        bool,
        typer.Option(
            "--browser/--no-browser",
            envvar="PLAY_BROWSER",
            help="open the page, from a terminal on a desktop",
            rich_help_panel=PAGE,
        ),
    ] = True,
    version: Version = False,  # noqa: ARG001 (its callback answers)
) -> None:
    """Serve the page that looks inside, over a digitserve server; Ctrl-C stops it.

    Exit status: 0 stopped; 1 the port cannot be listened on; 2 wrong usage.
    """
    try:
        files = {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key, "token_file": token_file}
        services = [connector(to, **files) for to in (address, compare) if to]
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None
    config = uvicorn.Config(application(services), log_level="warning", server_header=False)
    try:
        listening = _listening(host, port)
    except OSError as e:
        print(_bind_error(host, port, e), file=sys.stderr)
        raise typer.Exit(1) from None
    url = _url(host, listening.getsockname()[1])
    print(f"look inside at {url}\nCtrl-C stops it.", flush=True)
    if open_browser and browser.is_wanted(os.environ, sys.platform, is_terminal=sys.stdout.isatty()):
        browser.open_when_answering(url, os.environ)
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(config, listening))


async def _serve(config: uvicorn.Config, listening: socket.socket) -> None:
    """Serve until Ctrl-C. Until the loop runs, Ctrl-C exits at once: a coroutine that never runs causes a warning."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    await uvicorn.Server(config).serve(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def _bind_error(host: str, port: int, error: OSError) -> str:
    """Return the remedy for both ways of starting the page: make passes variables, not flags."""
    field, expected = "host", "an address of this machine"
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        field, expected = "port", "a free port"
    return (
        f"{field}: cannot listen on {host} port {port}: {error.strerror}; "
        f"expected {expected}: PLAY_{field.upper()}=... make play, or python -m playground --{field} ..."
    )


def _url(host: str, port: int) -> str:
    """Return the URL for a browser on this machine."""
    name = LOOPBACK.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def main() -> int:
    """Run the command; return the exit status that `--help` documents."""
    return streams.run(lambda: app(prog_name=startup.program_name("playground")))


if __name__ == "__main__":
    sys.exit(main())

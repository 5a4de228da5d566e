"""python -m play: serve the page that looks inside, over a digitserve server."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer
import uvicorn

from client.messages import checked
from play.gateway import application

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _address(value: str) -> str:
    try:
        return checked(value)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None


@app.command()
def play(
    address: Annotated[
        str, typer.Option(envvar="DIGITS_ADDRESS", help="host:port of the digitserve server", callback=_address)
    ] = "localhost:50051",
    host: Annotated[
        str, typer.Option(envvar="PLAY_HOST", help="where to listen; 0.0.0.0 for everywhere")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PLAY_PORT", min=0, max=65535, help="0 for any that is free")] = 8080,
) -> None:
    """Serve the page; Ctrl-C stops it."""
    config = uvicorn.Config(application(address), host=host, port=port, log_level="warning", server_header=False)
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn has logged why
        print(f"--port: cannot listen on {host} port {port}; expected one that is free", file=sys.stderr)
        raise typer.Exit(1) from None
    listening.listen()  # before it is announced
    print(f"look inside at http://{host}:{listening.getsockname()[1]}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    # gRPC's C core writes to standard error in a format of its own; what matters of it reaches the page.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()

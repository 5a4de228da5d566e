"""python -m play: serve the page that looks inside, over a digitserve server."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer
import uvicorn

from client.digits import AsyncDigitsClient
from client.options import Address, TlsCa, TlsCert, TlsKey, TokenFile
from client.secure import Token, channel_credentials
from play.gateway import application

TIMEOUT = 2.0
"""Seconds that the service may take for one answer: a person is waiting."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def play(
    address: Address = "localhost:50051",
    host: Annotated[
        str, typer.Option(envvar="PLAY_HOST", help="where to listen; 0.0.0.0 for everywhere")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PLAY_PORT", min=0, max=65535, help="0 for any that is free")] = 8080,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Serve the page; Ctrl-C stops it."""
    try:
        credentials = channel_credentials(tls_ca, tls_cert, tls_key)
        Token(token_file, address=address, encrypted=credentials is not None)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None

    def connect() -> AsyncDigitsClient:  # on the event loop that will ask by it
        return AsyncDigitsClient(address, timeout=TIMEOUT, credentials=credentials, token_file=token_file)

    config = uvicorn.Config(application(connect), host=host, port=port, log_level="warning", server_header=False)
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

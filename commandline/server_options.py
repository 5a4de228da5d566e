"""The options of every command that calls a server: its address, CA, certificate and token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commandline import startup


def _address(value: str) -> str:
    with startup.require_extra("client"):
        from digitserve_client.address import validate  # noqa: PLC0415 (`--help` does without the client)
    try:
        return validate(value)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None


GRPC, SECURITY = "gRPC", "TLS and tokens"
"""Their headings in `--help`, the same as the server's."""

Address = Annotated[
    str,
    typer.Option(
        envvar="DIGITS_ADDRESS", help="host:port or unix:PATH of the server", callback=_address, rich_help_panel=GRPC
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(envvar="DIGITS_TLS_CA", help="TLS, to a server that this CA vouches for", rich_help_panel=SECURITY),
]
TlsCert = Annotated[
    Path | None, typer.Option(help="certificate to show to the server, PEM; with --tls-key", rich_help_panel=SECURITY)
]
TlsKey = Annotated[Path | None, typer.Option(help="its key", rich_help_panel=SECURITY)]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="DIGITS_TOKEN_FILE", help="file with the bearer token that goes with each call", rich_help_panel=SECURITY
    ),
]

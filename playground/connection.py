"""Chooses the client of an address: gRPC, or HTTP for a URL."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from digitserve_client.address import is_url, validate, validate_url
from digitserve_client.credentials import Token, channel_credentials, ssl_context

from playground.grpc_client import GrpcClient
from playground.http_client import HttpClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playground.inspection import InspectedClient

TIMEOUT = 2.0
"""Seconds that the service may take for one answer: a person is waiting."""


def validate_address(address: str) -> str:
    """Return a gRPC address or a URL; ValueError for another."""
    return validate_url(address) if is_url(address) else validate(address)


def connector(
    address: str, *, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, token_file: Path | None
) -> Callable[[], InspectedClient]:
    """Return a function that makes the client, on the event loop that will use it; ValueError for unusable files."""
    credentials = channel_credentials(tls_ca, tls_cert, tls_key)
    if not is_url(address):
        Token(token_file, address=address, encrypted=credentials is not None)
        return partial(GrpcClient, address, timeout=TIMEOUT, credentials=credentials, token_file=token_file)
    is_encrypted = address.startswith("https:")
    if credentials is not None and not is_encrypted:
        raise ValueError(f"address is {address!r} with TLS files; expected https://")
    Token(token_file, address=address, encrypted=is_encrypted)
    context = ssl_context(tls_ca, tls_cert, tls_key, alpn="http/1.1") if is_encrypted else None
    return partial(HttpClient, address, timeout=TIMEOUT, context=context, token_file=token_file)

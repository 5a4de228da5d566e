"""A server with TLS and tokens, as on a public network, for the clients and tools under test."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certificates import Authority
from conftest import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "conformance-token-0123456789"  # noqa: S105 (of a server that the tests start)


@dataclass(frozen=True)
class SecureServer:
    """The address, with the host name of the certificate, and the certificate of the authority that signed it."""

    address: str
    authority: Path


@contextlib.contextmanager
def serving_securely(model: Path, folder: Path) -> Iterator[SecureServer]:
    """Start a server that only answers calls with TOKEN; its files are in the folder."""
    authority = Authority(folder)
    pair = authority.issue("server")
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    with serving(model, "--tls-cert", pair.certificate, "--tls-key", pair.key, "--tokens-file", tokens) as service:
        yield SecureServer(service.address.replace("127.0.0.1", "localhost"), authority.certificate)

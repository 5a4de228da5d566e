"""The certificates of the grpcio transport, exchanged while it serves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from service.address import ensure_bindable
from service.security.handshake import verify_by_handshake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.security.certificates import Pem
    from service.security.tls import Tls


class ServerCertificates:
    """The latest certificate of `tls`, for each server that takes the port in turn."""

    def __init__(self, tls: Tls) -> None:
        self._needs_client_certificates = tls.needs_client_certificates
        tls.subscribe(self._set_latest)

    def _set_latest(self, pem: Pem) -> None:
        verify_by_handshake(pem, _serve_on_loopback)
        self._latest = grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """Make credentials for one server."""
        current = self._latest

        def fetch_change() -> Any:
            """Return the latest certificate, None if unchanged; threads of grpcio call it at each handshake."""
            nonlocal current
            if current is self._latest:
                return None
            current = self._latest
            return current

        return grpc.dynamic_ssl_server_credentials(
            current, fetch_change, require_client_authentication=self._needs_client_certificates
        )


@contextmanager
def _serve_on_loopback(pem: Pem) -> Iterator[int]:
    """Serve these files, and no RPC, on a port of loopback; its clients need no certificate."""
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(pem.key, pem.chain)], pem.client_ca, require_client_auth=False)
    try:
        ensure_bindable("127.0.0.1", 0)  # so that a failure below is due to the files, not the machine
        try:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        except RuntimeError:
            raise ValueError("BoringSSL, the TLS library of grpcio, cannot load them") from None
        server.start()
        yield port
    finally:
        server.stop(None)

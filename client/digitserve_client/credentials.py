"""Load a client's credentials: the CA, a certificate and key, a bearer token from a file."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from digitserve_client.address import is_loopback


def channel_credentials(
    tls_ca: str | Path | None, tls_cert: str | Path | None, tls_key: str | Path | None
) -> grpc.ChannelCredentials | None:
    """Return credentials from PEM files; None, for plain text, without files.

    `tls_ca` contains the CAs of trusted servers; `tls_cert` and `tls_key` are sent to a server that requires them.
    Raises ValueError, with the parameter's name, for a file that is unreadable or not PEM, and for half a pair.
    """
    if tls_ca is None and tls_cert is None and tls_key is None:
        return None
    if (tls_cert is None) != (tls_key is None):
        present, missing = ("tls_cert", "tls_key") if tls_key is None else ("tls_key", "tls_cert")
        raise ValueError(f"{present} is given without {missing}: give both")
    files = _content("tls_ca", tls_ca), _content("tls_key", tls_key), _content("tls_cert", tls_cert)
    _check_pem(tls_ca, tls_cert, tls_key)
    return grpc.ssl_channel_credentials(*files)


def _check_pem(tls_ca: str | Path | None, tls_cert: str | Path | None, tls_key: str | Path | None) -> None:
    """Raise ValueError for errors that gRPC would report at the first call, in its own log only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if tls_ca is not None:
            context.load_verify_locations(tls_ca)
    except ssl.SSLError:
        raise ValueError(f"tls_ca {tls_ca}: not certificates in PEM") from None
    try:
        if tls_cert is not None:
            context.load_cert_chain(tls_cert, tls_key, password="")
    except ssl.SSLError as e:
        mismatched = "MISMATCH" in str(e.reason)
        status = "the key is not that of the certificate" if mismatched else "not a certificate and its key in PEM"
        raise ValueError(f"tls_cert {tls_cert} and tls_key {tls_key}: {status}") from None


def ssl_context(
    tls_ca: str | Path | None, tls_cert: str | Path | None, tls_key: str | Path | None, *, alpn: str = "h2"
) -> ssl.SSLContext:
    """Return an SSL context with the same files, for connections that gRPC does not make, such as those of a probe."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([alpn])
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC: any certificate of tls_ca is trusted
    context.load_default_certs() if tls_ca is None else context.load_verify_locations(tls_ca)
    if tls_cert is not None:
        context.load_cert_chain(tls_cert, tls_key, password="")
    return context


def trusting_context() -> ssl.SSLContext:
    """Return a context that trusts every certificate, to detect whether a server uses TLS; it sends no data."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Token:
    """The bearer token in a file, reloaded when the file changes; no metadata without a file.

    Raises ValueError, with the file's name, if it is unreadable or contains no token. Raises it too if the token would
    be sent to another machine in plain text.
    """

    def __init__(self, path: str | Path | None, *, address: str, encrypted: bool) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint: tuple[int, int, int] | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        if self._path is not None and not encrypted and not is_loopback(address):
            raise ValueError(f"token_file: {address} without TLS, which would send it in plain text; expected tls_ca")
        self.metadata()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        if self._path is not None and (fingerprint := _fingerprint_of(self._path)) != self._fingerprint:
            self._metadata = (("authorization", f"Bearer {_token_text(self._path)}"),)
            self._fingerprint = fingerprint
        return self._metadata


def _token_text(path: Path) -> str:
    token = (_content("token_file", path) or b"").decode(errors="replace").strip()
    if not token or not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"token_file {path}: holds no token; expected one line of printable characters")
    return token


def _content(parameter: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise ValueError(f"{parameter} {path}: cannot be read: {e.strerror}") from None


def _fingerprint_of(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)

"""TLS handshakes that verify a certificate before it is used, so that clients never receive an unusable one.

The first is in memory with OpenSSL, which reports reasons. The second is between the serving library and a client of
gRPC's C core, since BoringSSL or rustls may reject a certificate that OpenSSL accepts.
"""

from __future__ import annotations

import ssl
from threading import Event
from typing import TYPE_CHECKING, Any

import grpc

from service.errors import CredentialsError
from service.security.certificates import SERVED_KEYS, begins_with_issuer, check_certificates, check_key, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from service.security.certificates import Pem

HANDSHAKE_TIMEOUT = 20.0
"""Seconds for a handshake on loopback; only a machine that has stopped takes so long."""

_PeerCertificate = dict[str, Any]  # as ssl.SSLSocket.getpeercert decodes it


def verify_by_handshake(pem: Pem, serve_once: Callable[[Pem], AbstractContextManager[int]]) -> None:
    """Connect a client on gRPC's C core to a port of loopback on which `serve_once`, of a transport, serves the files.

    Raises ValueError, with the reason, if `serve_once` does or the handshake fails.
    """
    certificate = next(iter(parse(pem.chain)), None)
    if certificate is not None and not certificate.has_names:
        raise ValueError("the certificate names no host; expected a subject alternative name")
    try:
        with serve_once(pem) as port:
            # Clients that verify other names than a host, such as a SPIFFE ID, can use a certificate without a host.
            hosts = ("",) if certificate is None else certificate.hosts[:1]
            reason = "".join(_handshake_error(port, pem.chain, host) for host in hosts)
    except OSError as e:
        raise ValueError(f"no port of loopback to try it on: {e.strerror}") from None
    except ValueError as e:
        reason = str(e)
    if reason and certificate is not None and not certificate.has_served_key:
        reason = f"the key is {certificate.key}; expected {SERVED_KEYS}"
    if reason:
        raise ValueError(reason)


def _handshake_error(port: int, chain: bytes, host: str) -> str:
    """Return why the handshake of a client fails, or ""; the client trusts the certificate itself as its CA."""
    options: list[tuple[str, str | int]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.ssl_target_name_override", host.replace("*", "a", 1)),
    ]
    latest, is_final = [grpc.ChannelConnectivity.IDLE], Event()

    def on_change(connectivity: grpc.ChannelConnectivity) -> None:
        latest[0] = connectivity
        if connectivity in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}:
            is_final.set()

    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(chain), options) as channel:
        channel.subscribe(on_change, try_to_connect=True)
        if not is_final.wait(HANDSHAKE_TIMEOUT):
            return f"no handshake was finished within {HANDSHAKE_TIMEOUT:g} s"
    return "" if latest[0] == grpc.ChannelConnectivity.READY else "the handshake of a gRPC client fails"


def verify_in_memory(
    certificate: Path, key: Path, client_ca: Path | None, pem: Pem
) -> tuple[_PeerCertificate, list[str]]:
    """Run a handshake between two OpenSSL contexts in memory; the paths are for OpenSSL and for CredentialsError.

    Returns the decoded certificate, and the subjects of the CAs of client certificates.
    """
    _check_pem(certificate, key, client_ca, pem)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # OpenSSL prompts for the password of an encrypted key; an empty password makes that an error.
        server.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as e:
        raise CredentialsError(f"--tls-cert {certificate} and --tls-key {key}: {_explain(e, pem.chain)}") from None
    client_issuers = _load_client_ca(client_ca)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    try:
        return _handshake_peer(client, server), client_issuers
    except ssl.SSLCertVerificationError as e:
        raise CredentialsError(f"--tls-cert {certificate}: {e.verify_message}") from None
    except ssl.SSLError as e:
        raise CredentialsError(f"--tls-cert {certificate} and --tls-key {key}: {_explain(e, pem.chain)}") from None


def _check_pem(certificate: Path, key: Path, client_ca: Path | None, pem: Pem) -> None:
    for flag, path, content, check in (
        ("--tls-cert", certificate, pem.chain, check_certificates),
        ("--tls-key", key, pem.key, check_key),
        ("--tls-client-ca", client_ca, pem.client_ca, check_certificates),
    ):
        try:
            if content is not None:
                check(content)
        except ValueError as e:
            raise CredentialsError(f"{flag} {path}: {e}") from None


def _load_client_ca(path: Path | None) -> list[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if path is not None:
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            raise CredentialsError(f"--tls-client-ca {path}: not certificates in PEM") from None
    return [subject_name(ca) for ca in context.get_ca_certs()]


def _explain(error: ssl.SSLError, chain: bytes) -> str:
    """Explain an error that OpenSSL names by a code."""
    reason, certificates = error.reason or "", parse(chain)
    if "MISMATCH" in reason:
        if begins_with_issuer(certificates):
            return "the chain begins with an issuer; expected the server's certificate first, then its issuers'"
        return "the key is not that of the certificate"
    if "MD_TOO_WEAK" in reason:
        return "a signature of the chain is of SHA-1 or weaker; expected SHA-256 or stronger"
    if certificates and not certificates[0].has_served_key:
        return f"the key is {certificates[0].key}; expected {SERVED_KEYS}"
    return "not a certificate and its key in PEM" + (f": {reason}" if reason else "")


def _handshake_peer(client: ssl.SSLContext, server: ssl.SSLContext) -> _PeerCertificate:
    """Return the server's certificate as the client decodes it in a handshake of the two."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for end in (ends[0], ends[1], ends[0], ends[1]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    peer: _PeerCertificate = ends[0].getpeercert() or {}
    return peer


def subject_name(certificate: _PeerCertificate) -> str:
    """Return the subject of a certificate in the form of the log."""
    return ", ".join(f"{key}={value}" for part in certificate["subject"] for key, value in part)

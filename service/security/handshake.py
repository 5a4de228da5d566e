"""Handshakes before a certificate is put in force, so that one that no client could use is never offered to one.

First in memory with OpenSSL, which gives reasons. Then by the library that will serve, with a client such as ours: what
OpenSSL takes, BoringSSL or rustls may not.
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

    from service.security.credentials import Pem

WITHIN = 20.0
"""Seconds that a handshake on loopback may take; only a machine that stands still takes so long."""

_Peer = dict[str, Any]  # as ssl.SSLSocket.getpeercert decodes it


def verify_by_handshake(pem: Pem, offer: Callable[[Pem], AbstractContextManager[int]]) -> None:
    """Have a client of gRPC's C core shake hands with what `offer`, a transport's own, serves on a port of loopback.

    Raises ValueError, with the reason, where `offer` does or the handshake fails.
    """
    certificate = next(iter(parse(pem.chain)), None)
    if certificate is not None and not certificate.has_names:
        raise ValueError("the certificate names no host; expected a subject alternative name")
    try:
        with offer(pem) as port:
            # A certificate for no host, such as of SPIFFE, is for clients that look at other names than ours does.
            hosts = ("",) if certificate is None else certificate.hosts[:1]
            reason = "".join(_failure(port, pem.chain, host) for host in hosts)
    except OSError as e:
        raise ValueError(f"no port of loopback to try it on: {e.strerror}") from None
    except ValueError as e:
        reason = str(e)
    if reason and certificate is not None and not certificate.has_served_key:
        reason = f"the key is {certificate.key}; expected {SERVED_KEYS}"
    if reason:
        raise ValueError(reason)


def _failure(port: int, chain: bytes, host: str) -> str:
    """Why no client finishes a handshake; empty where one does. The certificate stands in for its own CA."""
    options: list[tuple[str, str | int]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.ssl_target_name_override", host.replace("*", "a", 1)),
    ]
    found, decided = [grpc.ChannelConnectivity.IDLE], Event()

    def on_change(connectivity: grpc.ChannelConnectivity) -> None:
        found[0] = connectivity
        if connectivity in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}:
            decided.set()

    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(chain), options) as channel:
        channel.subscribe(on_change, try_to_connect=True)
        if not decided.wait(WITHIN):
            return f"no handshake was finished within {WITHIN:g} s"
    return "" if found[0] == grpc.ChannelConnectivity.READY else "the handshake of a gRPC client fails"


def verify_in_memory(certificate: Path, key: Path, client_ca: Path | None, pem: Pem) -> tuple[_Peer, list[str]]:
    """Shake hands with ourselves; the paths are for the text of CredentialsError, and for OpenSSL, which reads files.

    Returns the certificate, and the names of those whom the callers' may be signed by.
    """
    _check_pem(certificate, key, client_ca, pem)
    server, caller = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # An encrypted key would be asked for on the terminal: an empty password makes it an error instead.
        server.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as e:
        found = _reason(e.reason or "", pem.chain)
        raise CredentialsError(f"--tls-cert {certificate} and --tls-key {key}: {found}") from None
    trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if client_ca is not None:
        try:
            trusted.load_verify_locations(client_ca)
        except ssl.SSLError:
            raise CredentialsError(f"--tls-client-ca {client_ca}: not certificates in PEM") from None
    caller.check_hostname = False
    caller.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    caller.load_verify_locations(certificate)
    try:
        peer = _handshake_peer(caller, server)
    except ssl.SSLCertVerificationError as e:
        raise CredentialsError(f"--tls-cert {certificate}: {e.verify_message}") from None
    except ssl.SSLError as e:
        found = _reason(e.reason or "", pem.chain)
        raise CredentialsError(f"--tls-cert {certificate} and --tls-key {key}: {found}") from None
    return peer, [name_of(ca) for ca in trusted.get_ca_certs()]


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


def _reason(of_openssl: str, chain: bytes) -> str:
    """A sentence for what OpenSSL calls by a name of its own."""
    found = parse(chain)
    if "MISMATCH" in of_openssl:
        if begins_with_issuer(found):
            return "the chain begins with an issuer; expected the server's certificate first, then its issuers'"
        return "the key is not that of the certificate"
    if "MD_TOO_WEAK" in of_openssl:
        return "a signature of the chain is of SHA-1 or weaker; expected SHA-256 or stronger"
    if found and not found[0].has_served_key:
        return f"the key is {found[0].key}; expected {SERVED_KEYS}"
    return "not a certificate and its key in PEM" + (f": {of_openssl}" if of_openssl else "")


def _handshake_peer(caller: ssl.SSLContext, server: ssl.SSLContext) -> _Peer:
    """The server's certificate as the caller sees it after a handshake between the two."""
    to_server, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [caller.wrap_bio(to_caller, to_server), server.wrap_bio(to_server, to_caller, server_side=True)]
    for end in (ends[0], ends[1], ends[0], ends[1]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    peer: _Peer = ends[0].getpeercert() or {}
    return peer


def name_of(certificate: _Peer) -> str:
    """The subject, as the log says it."""
    return ", ".join(f"{key}={value}" for part in certificate["subject"] for key, value in part)

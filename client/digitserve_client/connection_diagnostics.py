"""Why a server cannot be reached, as a sentence: gRPC's own names a system call, or nothing, where TLS is the reason.

A connection of Python's own is made once, after gRPC's failed; no call is sent over it, and no token.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import re
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from digitserve_client.address import Proxy, endpoints, is_loopback, proxy
from digitserve_client.credentials import probe_context, trusting_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONGEST = 1.0
"""Seconds that a probe may take."""

AWAITED = 3.0
"""Seconds that a call waits for what a probe finds: more, since a machine may be busy."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and empty SETTINGS
_TLS_ALERT, _SETTINGS = 0x15, 4

_SPEAKS_WITHIN = 0.3
"""Seconds after which a server is taken to wait for the client's first word; most begin themselves."""

_OF_GRPC = re.compile(r"(connections to all backends failing|failed to connect to all addresses|errors resolving|DNS )")
"""How gRPC's own sentences begin where there was no connection."""

# Numbers of OpenSSL's x509_vfy.h, and what its alerts are called.
_UNTRUSTED = {2, 18, 19, 20, 21}
_UNTIMELY = {9: "is not valid yet", 10: "has expired"}
_MISNAMED = {62, 63, 64}
_ALERTS = {
    "CERTIFICATE_REQUIRED": "asks for a certificate; expected tls_cert and tls_key",
    "HANDSHAKE_FAILURE": "ended the TLS handshake; does it ask for a certificate, tls_cert and tls_key?",
    "UNKNOWN_CA": "does not trust the CA of tls_cert",
    "CERTIFICATE_EXPIRED": "says that tls_cert has expired",
    "CERTIFICATE_UNKNOWN": "does not accept tls_cert",
    "BAD_CERTIFICATE": "does not accept tls_cert",
}


class Tls(NamedTuple):
    """What the client's channel shows and trusts: PEM files; `known` is false where it got credentials ready made."""

    ca: str | Path | None
    cert: str | Path | None
    key: str | Path | None
    known: bool


class _Fault(Exception):
    """What is wrong, as the end of a sentence."""


def probe(address: str, tls: Tls | None, *, within: float) -> concurrent.futures.Future[str | None]:
    """Find out, in a thread of its own, why no connection comes about; None where it does, or only gRPC could tell.

    Ends within seconds, unless a name server does not answer; no call waits for that.
    """
    found: concurrent.futures.Future[str | None] = concurrent.futures.Future()
    until = time.monotonic() + min(within, LONGEST)

    found.set_running_or_notify_cancel()  # it cannot be cancelled: a loop that no longer waits is no matter

    def run() -> None:
        try:
            found.set_result(_explain(address, tls, until))
        except Exception:  # noqa: BLE001 (a probe that fails tells nothing, and hides no error of the call)
            found.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return found


def is_unconnected(said: str) -> bool:
    """Whether a call's sentence is gRPC's own for want of a connection: a server's is never looked into."""
    return _OF_GRPC.match(said) is not None


def _explain(address: str, tls: Tls | None, until: float) -> str | None:
    way = proxy(address)
    faults = []
    for endpoint in endpoints(address):
        try:
            _try(endpoint, way, tls, until)
        except _Fault as e:
            faults.append(str(e))
        else:
            return None
    if not faults:
        return None
    if way:
        host = endpoints(address)[0][0]
        return (
            f"{address}, by way of the proxy {way.host}:{way.port} of {way.variable}: {faults[0]}; "
            f"no_proxy={host} goes past the proxy"
        )
    hint = ""
    if faults[0] == _NOTHING and is_loopback(address):
        hint = "; start a server with `make run` or `python -m service`"
    return f"{address}: {faults[0]}{hint}"


_NOTHING = "nothing listens there"


def _try(endpoint: tuple[str, int] | str, way: Proxy | None, tls: Tls | None, until: float) -> None:
    """Connect as the client would; _Fault where it does not come to HTTP/2."""

    def connect() -> socket.socket:
        return _connect(endpoint, way, until)

    host = endpoint if isinstance(endpoint, str) else endpoint[0]
    if tls is None:
        _check_plain(connect)
    else:
        _check_tls(connect, tls, "localhost" if isinstance(endpoint, str) else host)


def _connect(endpoint: tuple[str, int] | str, way: Proxy | None, until: float) -> socket.socket:
    left = max(until - time.monotonic(), 0.01)
    try:
        if isinstance(endpoint, str):
            connection = _connect_unix(endpoint, left)
        else:
            connection = socket.create_connection((way.host, way.port) if way else endpoint, timeout=left)
    except socket.gaierror:
        raise _Fault("the proxy's name does not resolve" if way else "the name does not resolve") from None
    except (ConnectionRefusedError, FileNotFoundError):
        raise _Fault("the proxy does not listen" if way else _NOTHING) from None
    except TimeoutError:
        raise _Fault(f"no connection within {left:.1g} s; is a firewall on the way?") from None
    except OSError as e:
        raise _Fault(e.strerror or str(e)) from None
    if way and not isinstance(endpoint, str):
        _through(connection, way, endpoint)
    return connection


def _connect_unix(path: str, within: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(within)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _through(connection: socket.socket, way: Proxy, endpoint: tuple[str, int]) -> None:
    """Ask the proxy for the way, as gRPC does."""
    target = "{}:{}".format(*endpoint)
    basic = base64.b64encode(way.credentials.encode()).decode()
    authorization = f"Proxy-Authorization: Basic {basic}\r\n" if way.credentials else ""
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n"
    answer = b""
    with contextlib.suppress(OSError):
        connection.sendall(request.encode())
        while b"\r\n\r\n" not in answer and (more := connection.recv(4096)):
            answer += more
    status = answer.split(b"\r\n", 1)[0].decode(errors="replace")
    if not re.match(r"HTTP/1\.[01] 2", status):
        connection.close()
        raise _Fault(f"the proxy answers {status.partition(' ')[2]}" if status else "the proxy gives no answer")


def _check_plain(connect: Callable[[], socket.socket]) -> None:
    with connect() as connection:
        answer = _answer(connection)
    if _is_http2(answer):
        return
    if answer is None:
        raise _Fault("takes the connection, but sends nothing")
    if answer[:1] == bytes([_TLS_ALERT]) or (not answer and _speaks_tls(connect)):
        raise _Fault("the server speaks TLS; expected tls_ca, the CA that vouches for it")
    raise _Fault("does not speak gRPC; is it the right port?" if answer else "closes the connection at once")


def _check_tls(connect: Callable[[], socket.socket], tls: Tls, host: str) -> None:
    context = probe_context(tls.ca, tls.cert, tls.key) if tls.known else trusting_context()
    try:
        with connect() as connection, context.wrap_socket(connection, server_hostname=host) as secured:
            protocol, answer = secured.selected_alpn_protocol(), _first_word(secured)
    except ssl.SSLCertVerificationError as e:
        raise _Fault(_of_certificate(e, host)) from None
    except TimeoutError:
        raise _Fault("takes the connection, but does not answer the TLS handshake") from None
    except (ssl.SSLError, ConnectionError) as e:
        reason = getattr(e, "reason", None) or ""
        for alert, meaning in _ALERTS.items():
            if reason.endswith(f"ALERT_{alert}"):
                raise _Fault(f"the server {meaning}") from None
        with connect() as connection:
            if _is_http2(_answer(connection)):
                raise _Fault("the server does not speak TLS; expected no tls_ca") from None
        if reason == "WRONG_VERSION_NUMBER":
            raise _Fault("speaks neither TLS nor gRPC; is it the right port?") from None
        raise _Fault(f"the TLS handshake fails: {reason.lower().replace('_', ' ') or 'hung up'}") from None
    if protocol is None and tls.known:
        raise _Fault("the server speaks TLS, but not HTTP/2 (ALPN h2)")
    if tls.known and answer == b"":
        asked = "does it accept tls_cert?" if tls.cert else "does it ask for a certificate, tls_cert and tls_key?"
        raise _Fault(f"the server ends the connection after the TLS handshake; {asked}")


def _of_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    code = error.verify_code
    if code in _UNTRUSTED:
        return "no CA that is trusted vouches for the server's certificate; expected tls_ca, the CA that does"
    if code in _UNTIMELY:
        return f"the server's certificate {_UNTIMELY[code]}"
    if code in _MISNAMED:
        return f"the server's certificate is not for {host}"
    return f"the server's certificate is refused: {error.verify_message}"


def _first_word(secured: ssl.SSLSocket) -> bytes | None:
    """As `_answer`; with TLS 1.3 a server refuses a client's certificate now, and what was sent would drown that."""
    within = secured.gettimeout()
    secured.settimeout(_SPEAKS_WITHIN)
    try:
        return secured.recv(9)
    except TimeoutError:
        secured.settimeout(within)
        return _answer(secured)


def _answer(connection: socket.socket) -> bytes | None:
    """What comes back for the beginning of HTTP/2: nothing where it was closed, None where it keeps silent."""
    try:
        connection.sendall(_PREFACE)
        return connection.recv(9)
    except TimeoutError:
        return None
    except ssl.SSLError:
        raise
    except OSError:
        return b""


def _is_http2(answer: bytes | None) -> bool:
    return answer is not None and len(answer) >= 4 and answer[3] == _SETTINGS and answer[:1] == b"\0"


def _speaks_tls(connect: Callable[[], socket.socket]) -> bool:
    try:
        with connect() as connection, trusting_context().wrap_socket(connection):
            return True
    except ssl.SSLError as e:
        return "ALERT" in (e.reason or "")
    except OSError:
        return False

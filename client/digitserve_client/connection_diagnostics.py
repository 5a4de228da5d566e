"""Explain why a server cannot be reached: gRPC's own message names a system call, and omits TLS errors.

Python opens one connection after gRPC's failed, and sends neither a call nor a token over it.
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
from digitserve_client.credentials import ssl_context, trusting_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROBE_TIMEOUT = 1.0
"""Seconds that a probe may take."""

PROBE_RESULT_TIMEOUT = 3.0
"""Seconds that a call waits for a probe's result: more, since a machine may be busy."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and empty SETTINGS
_TLS_ALERT, _SETTINGS = 0x15, 4

_SERVER_PREFACE_TIMEOUT = 0.3
"""Seconds after which a server is taken to wait for the client's first word; most begin themselves."""

_GRPC_CONNECTION_MESSAGE = re.compile(
    r"(connections to all backends failing|failed to connect to all addresses|errors resolving|DNS )"
)
"""Beginnings of gRPC's messages for a missing connection."""

# Numbers of OpenSSL's x509_vfy.h, and the names of its alerts.
_UNTRUSTED_CODES = {2, 18, 19, 20, 21}
_VALIDITY_CODES = {9: "is not valid yet", 10: "has expired"}
_HOSTNAME_CODES = {62, 63, 64}
_ALERTS = {
    "CERTIFICATE_REQUIRED": "requires a certificate; expected tls_cert and tls_key",
    "HANDSHAKE_FAILURE": "ended the TLS handshake; it may require a certificate, tls_cert and tls_key",
    "UNKNOWN_CA": "does not trust the CA of tls_cert",
    "CERTIFICATE_EXPIRED": "rejects tls_cert, which has expired",
    "CERTIFICATE_UNKNOWN": "does not accept tls_cert",
    "BAD_CERTIFICATE": "does not accept tls_cert",
}


class Tls(NamedTuple):
    """The PEM files of the client's channel; `known` is false if it uses `credentials`."""

    ca: str | Path | None
    cert: str | Path | None
    key: str | Path | None
    known: bool


class _Fault(Exception):
    """A fault, as the end of a message."""


def probe(address: str, tls: Tls | None, *, timeout: float) -> concurrent.futures.Future[str | None]:
    """Find the reason of a missing connection in a thread; None if a connection succeeds or only gRPC can know.

    Ends within seconds, unless a name server does not answer; no call waits for that.
    """
    result: concurrent.futures.Future[str | None] = concurrent.futures.Future()
    deadline = time.monotonic() + min(timeout, PROBE_TIMEOUT)

    result.set_running_or_notify_cancel()  # it cannot be cancelled: a loop that no longer waits is no matter

    def run() -> None:
        try:
            result.set_result(_explain(address, tls, deadline))
        except Exception:  # noqa: BLE001 (a failed probe must not hide the call's error)
            result.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return result


def is_connection_message(message: str) -> bool:
    """Whether a call's sentence is gRPC's own for want of a connection: a server's is never looked into."""
    return _GRPC_CONNECTION_MESSAGE.match(message) is not None


def _explain(address: str, tls: Tls | None, deadline: float) -> str | None:
    via = proxy(address)
    faults = []
    for endpoint in endpoints(address):
        try:
            _try(endpoint, via, tls, deadline)
        except _Fault as e:
            faults.append(str(e))
        else:
            return None
    if not faults:
        return None
    if via:
        host = endpoints(address)[0][0]
        return (
            f"{address}, by way of the proxy {via.host}:{via.port} of {via.variable}: {faults[0]}; "
            f"no_proxy={host} goes past the proxy"
        )
    hint = ""
    if faults[0] == _NO_LISTENER and is_loopback(address):
        hint = "; start a server with `make run` or `python -m service`"
    return f"{address}: {faults[0]}{hint}"


_NO_LISTENER = "the port is closed"


def _try(endpoint: tuple[str, int] | str, via: Proxy | None, tls: Tls | None, deadline: float) -> None:
    """Connect as the client would; _Fault without HTTP/2."""

    def connect() -> socket.socket:
        return _connect(endpoint, via, deadline)

    host = endpoint if isinstance(endpoint, str) else endpoint[0]
    if tls is None:
        _check_plain(connect)
    else:
        _check_tls(connect, tls, "localhost" if isinstance(endpoint, str) else host)


def _connect(endpoint: tuple[str, int] | str, via: Proxy | None, deadline: float) -> socket.socket:
    remaining = max(deadline - time.monotonic(), 0.01)
    try:
        if isinstance(endpoint, str):
            connection = _connect_unix(endpoint, remaining)
        else:
            connection = socket.create_connection((via.host, via.port) if via else endpoint, timeout=remaining)
    except socket.gaierror:
        raise _Fault("the proxy's name does not resolve" if via else "the name does not resolve") from None
    except (ConnectionRefusedError, FileNotFoundError):
        raise _Fault("the proxy does not listen" if via else _NO_LISTENER) from None
    except TimeoutError:
        raise _Fault(f"no connection within {remaining:.1g} s; is a firewall on the way?") from None
    except OSError as e:
        raise _Fault(e.strerror or str(e)) from None
    if via and not isinstance(endpoint, str):
        _connect_through(connection, via, endpoint)
    return connection


def _connect_unix(path: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _connect_through(connection: socket.socket, via: Proxy, endpoint: tuple[str, int]) -> None:
    """Send CONNECT to the proxy, as gRPC does."""
    target = "{}:{}".format(*endpoint)
    basic = base64.b64encode(via.credentials.encode()).decode()
    authorization = f"Proxy-Authorization: Basic {basic}\r\n" if via.credentials else ""
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
        answer = _exchange_preface(connection)
    if _is_http2(answer):
        return
    if answer is None:
        raise _Fault("accepts the connection, but sends no data")
    if answer[:1] == bytes([_TLS_ALERT]) or (not answer and _supports_tls(connect)):
        raise _Fault("the server speaks TLS; expected tls_ca, the CA that vouches for it")
    raise _Fault("does not speak gRPC; is it the right port?" if answer else "closes the connection at once")


def _check_tls(connect: Callable[[], socket.socket], tls: Tls, host: str) -> None:
    context = ssl_context(tls.ca, tls.cert, tls.key) if tls.known else trusting_context()
    try:
        with connect() as connection, context.wrap_socket(connection, server_hostname=host) as secured:
            protocol, answer = secured.selected_alpn_protocol(), _first_bytes(secured)
    except ssl.SSLCertVerificationError as e:
        raise _Fault(_describe_certificate_error(e, host)) from None
    except TimeoutError:
        raise _Fault("takes the connection, but does not answer the TLS handshake") from None
    except (ssl.SSLError, ConnectionError) as e:
        reason = getattr(e, "reason", None) or ""
        for alert, meaning in _ALERTS.items():
            if reason.endswith(f"ALERT_{alert}"):
                raise _Fault(f"the server {meaning}") from None
        with connect() as connection:
            if _is_http2(_exchange_preface(connection)):
                raise _Fault("the server does not speak TLS; expected no tls_ca") from None
        if reason == "WRONG_VERSION_NUMBER":
            raise _Fault("speaks neither TLS nor gRPC; is it the right port?") from None
        raise _Fault(f"the TLS handshake fails: {reason.lower().replace('_', ' ') or 'hung up'}") from None
    if protocol is None and tls.known:
        raise _Fault("the server speaks TLS, but not HTTP/2 (ALPN h2)")
    if tls.known and answer == b"":
        hint = "it may reject tls_cert" if tls.cert else "it may require a certificate, tls_cert and tls_key"
        raise _Fault(f"the server ends the connection after the TLS handshake; {hint}")


def _describe_certificate_error(error: ssl.SSLCertVerificationError, host: str) -> str:
    code = error.verify_code
    if code in _UNTRUSTED_CODES:
        return "no CA that is trusted vouches for the server's certificate; expected tls_ca, the CA that does"
    if code in _VALIDITY_CODES:
        return f"the server's certificate {_VALIDITY_CODES[code]}"
    if code in _HOSTNAME_CODES:
        return f"the server's certificate is not for {host}"
    return f"the server's certificate is invalid: {error.verify_message}"


def _first_bytes(secured: ssl.SSLSocket) -> bytes | None:
    """As `_answer`, without sending: data would hide that a TLS 1.3 server rejects the client's certificate."""
    timeout = secured.gettimeout()
    secured.settimeout(_SERVER_PREFACE_TIMEOUT)
    try:
        return secured.recv(9)
    except TimeoutError:
        secured.settimeout(timeout)
        return _exchange_preface(secured)


def _exchange_preface(connection: socket.socket) -> bytes | None:
    """Return the reply to the HTTP/2 preface: empty if the connection was closed, None after a timeout."""
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


def _supports_tls(connect: Callable[[], socket.socket]) -> bool:
    try:
        with connect() as connection, trusting_context().wrap_socket(connection):
            return True
    except ssl.SSLError as e:
        return "ALERT" in (e.reason or "")
    except OSError:
        return False

"""Addresses of a host and sockets that listen on them; their errors have a reason, those of gRPC have none."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any

from service.errors import AddressInUse

_UNAVAILABLE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Errors of an address that a name such as localhost has on a machine without IPv6."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on one port of every local address of the host; `::` includes every IPv4 address.

    Raises AddressInUse if one is taken or there is none.
    """
    listeners: list[socket.socket] = []
    unavailable: OSError | None = None
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in dict.fromkeys(infos):  # a hosts file may have an address twice
            bound = listeners[0].getsockname()[1] if listeners else port
            try:
                listeners.append(_listen(socket.socket(family, kind, protocol), (str(address[0]), bound, *address[2:])))
            except OSError as e:
                if e.errno not in _UNAVAILABLE:
                    raise
                unavailable = e
        if unavailable is not None and not listeners:
            raise unavailable
    except OSError as e:
        for listener in listeners:
            listener.close()
        raise _bind_error(host, port, e) from e
    return listeners


def ensure_bindable(host: str, port: int) -> list[str]:
    """Listen and close again; return the local addresses of the host. Raises AddressInUse."""
    addresses = []
    for listener in listen(host, port):
        addresses.append(_numeric(*listener.getsockname()))
        listener.close()
    return addresses


def reserve_ipv6_port(port: int) -> socket.socket | None:
    """Bind a port of `::` without listening; None if it is taken or there is no IPv6.

    gRPC reads 0.0.0.0 as every address of every family, and falls back to IPv4 if it cannot bind both.
    """
    reservation = None
    with suppress(OSError):
        reservation = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        reservation.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        reservation.bind(("::", port))
        return reservation
    if reservation is not None:
        reservation.close()
    return None


def join_host_port(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(listener: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address[0] == "::":  # overrides net.ipv6.bindv6only, as gRPC does
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _numeric(host: str, _port: int, _flow: int = 0, scope: int = 0) -> str:
    return f"{host}%{scope}" if scope else host


def _bind_error(host: str, port: int, error: OSError) -> AddressInUse:
    """Describe the error for the operator."""
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"port {port} on {host} is in use: stop the other process, or choose another port")
    return AddressInUse(f"cannot listen on {host} port {port}: {error.strerror}")

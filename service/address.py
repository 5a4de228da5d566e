"""Which addresses a host's name has here, and whether they can be listened on: the sockets give a reason, gRPC none."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any

from service.errors import AddressInUse

_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""What a name such as localhost may stand for on a machine without IPv6."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on one port of every address that the host has here. `::` is all there are, of IPv4 too.

    AddressInUse, with a sentence, where one is taken or none is there.
    """
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in dict.fromkeys(found):  # a file of hosts may name an address twice
            bound = listeners[0].getsockname()[1] if listeners else port
            try:
                listeners.append(_listen(socket.socket(family, kind, protocol), (str(address[0]), bound, *address[2:])))
            except OSError as e:
                if e.errno not in _ABSENT:
                    raise
                absent = e
        if absent is not None and not listeners:
            raise absent
    except OSError as e:
        for listener in listeners:
            listener.close()
        raise _bind_error(host, port, e) from e
    return listeners


def ensure_bindable(host: str, port: int) -> list[str]:
    """Listen and let go again; the host's addresses here. AddressInUse with a sentence where that fails."""
    found = []
    for listener in listen(host, port):
        found.append(_numeric(*listener.getsockname()))
        listener.close()
    return found


def reserve_ipv6_port(port: int) -> socket.socket | None:
    """A socket that holds a port of `::` and does not listen; None where it is held already or there is no IPv6.

    gRPC takes 0.0.0.0 for "any address of any family", and falls back on IPv4 where it cannot have both.
    """
    guard = None
    with suppress(OSError):
        guard = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        guard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        guard.bind(("::", port))
        return guard
    if guard is not None:
        guard.close()
    return None


def join_host_port(host: str, port: int) -> str:
    """`host:port` as addresses and URLs have it: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(listener: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address[0] == "::":  # whatever net.ipv6.bindv6only says, as gRPC does
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
    """The sentence for the operator."""
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"port {port} on {host} is taken: stop what listens there, or choose another port")
    return AddressInUse(f"cannot listen on {host} port {port}: {error.strerror}")

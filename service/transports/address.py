"""Whether an address can be listened on, asked before a library is: it gives no reason, the socket does."""

from __future__ import annotations

import errno
import socket

from service.errors import AddressInUse


def check_free(host: str, port: int) -> None:
    """Bind and let go again; AddressInUse with a sentence where that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as e:
        raise refused(host, port, e) from e


def refused(host: str, port: int, error: OSError) -> AddressInUse:
    """The sentence for the operator."""
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"port {port} on {host} is taken: stop what listens there, or choose another port")
    return AddressInUse(f"cannot listen on {host} port {port}: {error.strerror}")

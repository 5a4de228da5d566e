"""The client of a call, for the RPCs that only clients on this machine may use."""

from __future__ import annotations

import re
import urllib.parse
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from service.observability.connections import established_owners

if TYPE_CHECKING:
    from collections.abc import Callable

PEER: ContextVar[Callable[[], str] | None] = ContextVar("peer", default=None)
"""The transport sets it: returns the address of the client as gRPC writes it, or `unix:uid=1000`."""

_LOOPBACK_PEER = re.compile(r"ipv4:127\.[0-9.]+:([0-9]+)|ipv6:\[(?:::1|::ffff:127\.[0-9.]+)\]:([0-9]+)")
_UNIX_PEER = re.compile(r"unix:uid=([0-9]+)")


class LocalClient(NamedTuple):
    """A client on this machine."""

    uid: int | None = None
    """The user by the credentials of a Unix domain socket, if the transport knows it."""
    port: int | None = None
    """The client's port, over TCP."""


def current_client() -> LocalClient | None:
    """Return the client of the current call; None if it may be on another machine, or calls over HTTP."""
    address = PEER.get()
    peer = urllib.parse.unquote(address()) if address is not None else ""
    if match := _UNIX_PEER.fullmatch(peer):
        return LocalClient(uid=int(match[1]))
    if peer.startswith("unix:"):
        return LocalClient()
    match = _LOOPBACK_PEER.fullmatch(peer)
    return LocalClient(port=int(match[1] or match[2])) if match else None


def socket_owners(port: int) -> set[int]:
    """Return the users who own an open TCP socket of this machine with this local port."""
    return set(established_owners(port) or ())

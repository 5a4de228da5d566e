"""The number of connections of a port, read from the kernel, since no transport counts them alike."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_UNIX_TABLE = Path("/proc/self/net/unix")


def count_established(port: int, socket_path: str = "") -> float:
    """Count the open connections to `port` of this machine or container, and to the Unix domain socket bound to a path.

    NaN if the system does not report them.
    """
    owners = established_owners(port)
    return float("nan") if owners is None else float(len(owners) + _count_unix(socket_path))


def established_owners(port: int) -> list[int] | None:
    """Return the user of each open TCP connection with this local port; None if the system does not report them."""
    # proc(5): local and remote address, state 01 for ESTABLISHED, queues, timer, retransmissions, uid.
    line = re.compile(rb":%04X [0-9A-F]+:[0-9A-F]{4} 01 \S+ \S+ \S+ +([0-9]+)" % port)
    try:
        tables = [table.read_bytes() for table in _TABLES if table.exists()]
    except OSError:  # a scrape still has the other metrics
        tables = []
    return [int(owner) for table in tables for owner in line.findall(table)] if tables else None


def _count_unix(path: str) -> int:
    """Count the server's ends of the connections: they have the name of the socket that accepted them."""
    if not path:
        return 0
    # unix(7): type 0001 is SOCK_STREAM; state 03 is connected.
    line = re.compile(rb" 0001 03 +[0-9]+ %s$" % re.escape(os.fsencode(path)), re.MULTILINE)
    try:
        return len(line.findall(_UNIX_TABLE.read_bytes()))
    except OSError:
        return 0

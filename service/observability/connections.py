"""How many connections a port has, as the kernel tells: that is the same for every transport, and none counts them."""

from __future__ import annotations

import re
from pathlib import Path

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))


def established(port: int) -> float:
    """Open TCP connections to `port` of this machine or container; NaN where the system does not tell."""
    # proc(5) has local port, remote address and port, and state in a row; of the states 01 is ESTABLISHED.
    line = re.compile(rb":%04X [0-9A-F]+:[0-9A-F]{4} 01 " % port)
    try:
        tables = [table.read_bytes() for table in _TABLES if table.exists()]
    except OSError:  # a scrape has more to tell than this
        tables = []
    return float(sum(len(line.findall(table)) for table in tables)) if tables else float("nan")

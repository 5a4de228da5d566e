"""The number of connections of a port, read from the kernel, since no transport counts them alike."""

from __future__ import annotations

import re
from pathlib import Path

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))


def count_established(port: int) -> float:
    """Count the open TCP connections to `port` of this machine or container; NaN if the system does not report them."""
    # proc(5): local port, remote address and port, state; state 01 is ESTABLISHED.
    line = re.compile(rb":%04X [0-9A-F]+:[0-9A-F]{4} 01 " % port)
    try:
        tables = [table.read_bytes() for table in _TABLES if table.exists()]
    except OSError:  # a scrape still has the other metrics
        tables = []
    return float(sum(len(line.findall(table)) for table in tables)) if tables else float("nan")

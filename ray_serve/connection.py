"""Whether a Ray can be there, asked before Ray is: where nothing listens, its core ends the whole process."""

from __future__ import annotations

import socket

WITHIN = 5.0  # seconds

START_ONE = "start one with `ray start --head --disable-usage-stats`"

NO_ANSWER = f"no Ray answers there, or it wants a token and RAY_AUTH_MODE=token is not set; {START_ONE}"
"""After a connection was made: Ray takes up its token by itself for `auto` alone."""


def why_not(address: str) -> str:
    """Why no Ray can be at `address`, HOST:PORT; nothing where there may be one, or Ray finds out by itself."""
    if address == "auto" or "://" in address:
        return ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        return "expected auto or HOST:PORT, as `ray start --head` prints it"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=WITHIN):
            return ""
    except OSError as e:
        return f"no Ray answers there ({(e.strerror or str(e)).lower()}); {START_ONE}"

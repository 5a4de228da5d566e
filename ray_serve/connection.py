"""Checks that Ray listens before its own connection attempt, since its core ends the process otherwise."""

from __future__ import annotations

import socket

CONNECT_TIMEOUT = 5.0  # seconds

HOW_TO_START = "start one with `ray start --head --disable-usage-stats`"

NO_ANSWER = f"no Ray answers there, or it wants a token and RAY_AUTH_MODE=token is not set; {HOW_TO_START}"
"""The error after a connection: Ray finds its token by itself only for `auto`."""


def connection_error(address: str) -> str:
    """Return why Ray cannot be at `address`, HOST:PORT; "" if it may be, or if Ray resolves the address itself."""
    if address == "auto" or "://" in address:
        return ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        return "expected auto or HOST:PORT, as `ray start --head` prints it"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT):
            return ""
    except OSError as e:
        return f"no Ray answers there ({(e.strerror or str(e)).lower()}); {HOW_TO_START}"

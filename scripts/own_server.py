"""What `make run` and `make play` share: the server that they start as a process of their own."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from client import DigitsClient
from service.config import SettingsError, load
from service.errors import AddressInUse
from service.transports.address import check_free

if TYPE_CHECKING:
    import subprocess

    from service.config import Settings

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (what one listens on is not what one calls)


def settings() -> Settings:
    """Those that the environment gives; ends the process where they cannot be."""
    try:
        found = load([])
    except SettingsError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    if found.port == 0:
        print("DIGITS_PORT is 0: choose a port, so that the server can be called there", file=sys.stderr)
        sys.exit(2)
    return found


def address(given: Settings) -> str:
    """Where callers on this machine reach it."""
    return f"{ANYWHERE.get(given.host, given.host)}:{given.port}"


def end_if_taken(given: Settings) -> None:
    """End the process with a sentence where another one listens already, whose answers would be taken for its own."""
    try:
        for host, port in ((given.host, given.port), (given.metrics_host, given.metrics_port)):
            check_free(host, port)
    except AddressInUse as e:
        print(f"{e} by DIGITS_PORT and DIGITS_METRICS_PORT", file=sys.stderr)
        sys.exit(1)


def answers(where: str) -> bool:
    """Whether a server says SERVING there, without TLS."""
    with DigitsClient(where) as client:
        return client.is_serving()


def comes_up(server: subprocess.Popen[bytes], where: str) -> bool:
    """Wait until it says SERVING; False where it ends first, having said why."""
    while server.poll() is None:
        if answers(where):
            return True
        time.sleep(0.05)
    return False

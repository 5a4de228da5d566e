"""The main job in one go: serve, send real digits, show the answers, and go on serving until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import own_server

if TYPE_CHECKING:
    from types import FrameType

UP_WITHIN = 60  # seconds


def main() -> int:
    """The server's exit status, or the demonstration's where that failed."""
    settings = own_server.settings()
    own_server.end_if_taken(settings)
    server = subprocess.Popen([sys.executable, "-m", "service"])
    _pass_on_signals(server)
    demo = subprocess.Popen(
        [sys.executable, "-m", "client", "demo", "--wait", str(UP_WITHIN)],
        env={**os.environ, "DIGITS_ADDRESS": own_server.address(settings)},
    )
    threading.Thread(target=_end_with, args=(server, demo), daemon=True).start()
    failed = demo.wait()
    if failed and server.poll() is None:
        server.terminate()
    elif server.poll() is None:
        print("\nServing on; Ctrl-C stops it.", flush=True)
    return server.wait() or max(failed, 0)


def _pass_on_signals(server: subprocess.Popen[bytes]) -> None:
    """Ctrl-C reaches the server by itself, as it does every process of a terminal; SIGTERM does not."""

    def on_terminate(_: int, __: FrameType | None) -> None:
        server.terminate()

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, on_terminate)


def _end_with(server: subprocess.Popen[bytes], demo: subprocess.Popen[bytes]) -> None:
    """A demonstration without a server has nothing to wait for."""
    server.wait()
    if demo.poll() is None:
        demo.terminate()


if __name__ == "__main__":
    sys.exit(main())

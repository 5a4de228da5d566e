"""The main job in one go: serve, send real digits, show the answers, and go on serving until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from service.config import SettingsError, load

if TYPE_CHECKING:
    from types import FrameType

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (what one listens on is not what one calls)
UP_WITHIN = 60  # seconds


def main() -> int:
    """The server's exit status, or the demonstration's where that failed."""
    try:
        settings = load([])
    except SettingsError as e:
        print(e, file=sys.stderr)
        return 2
    if settings.port == 0:
        print("DIGITS_PORT is 0: choose a port, so that the digits can be sent there", file=sys.stderr)
        return 2
    host = ANYWHERE.get(settings.host, settings.host)
    server = subprocess.Popen([sys.executable, "-m", "service"])
    _pass_on_signals(server)
    demo = subprocess.Popen(
        [sys.executable, "-m", "client", "demo", "--wait", str(UP_WITHIN)],
        env={**os.environ, "DIGITS_ADDRESS": f"{host}:{settings.port}"},
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

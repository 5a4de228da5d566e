"""The page that looks inside in one go: serve the model and the page, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from service.config import SettingsError, load

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (what one listens on is not what one calls)


def main() -> int:
    """The exit status of whichever of the two ended first."""
    try:
        settings = load([])
    except SettingsError as e:
        print(e, file=sys.stderr)
        return 2
    address = f"{ANYWHERE.get(settings.host, settings.host)}:{settings.port}"
    both = [
        subprocess.Popen([sys.executable, "-m", "service"]),
        subprocess.Popen([sys.executable, "-m", "play"], env={**os.environ, "DIGITS_ADDRESS": address}),
    ]

    def stop(*_: object) -> None:
        for process in both:
            process.terminate()

    # Ctrl-C reaches the two by themselves, as it does every process of a terminal; SIGTERM does not.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)
    ended, _ = os.wait()
    stop()
    statuses = {process.pid: process.wait() for process in both}
    return max(0, statuses[ended])


if __name__ == "__main__":
    sys.exit(main())

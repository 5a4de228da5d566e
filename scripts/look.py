"""The page that looks inside in one go: serve the model, unless a server is up already, and the page, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import own_server


def main() -> int:
    """The exit status of whichever of the two ended first."""
    settings = own_server.settings()
    address = own_server.address(settings)
    processes: list[subprocess.Popen[bytes]] = []

    def stop(*_: object) -> None:
        for process in processes:
            process.terminate()

    # Ctrl-C reaches the two by themselves, as it does every process of a terminal; SIGTERM does not.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)
    if own_server.answers(address):
        print(f"a server is up at {address}: the page asks that one", flush=True)
    else:
        own_server.end_if_taken(settings)
        processes.append(subprocess.Popen([sys.executable, "-m", "service"]))
        if not own_server.comes_up(processes[0], address):
            return max(0, processes[0].wait())
    environment = {**os.environ, "DIGITS_ADDRESS": address}
    processes.append(subprocess.Popen([sys.executable, "-m", "play"], env=environment))
    _, status = os.wait()
    stop()
    for process in processes:
        process.wait()
    return max(0, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    sys.exit(main())

"""Serve the playground's page until Ctrl-C, and the model, unless a server is running."""

from __future__ import annotations

import os
import signal

signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # imports are not prepared for KeyboardInterrupt

import sys

import local_server


def main() -> int:
    """Return the exit status of the first process to end; 130 after a Ctrl-C before the page is served."""
    settings = local_server.settings()
    address = local_server.address(settings)
    processes = local_server.Processes()
    if local_server.answers(address):
        print(f"a server is up at {address}: the page calls that server", flush=True)
    else:
        local_server.end_if_taken(settings)
        server = processes.start_service()
        if not local_server.comes_up(server, address):
            return processes.stopped_status if processes.stopped_by else max(0, server.wait())
    processes.start("playground", DIGITS_ADDRESS=address)
    _, status = os.wait()
    processes.stop()
    return max(0, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    sys.exit(main())

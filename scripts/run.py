"""Run the main job: serve, send real digits, show the answers, and serve until Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal

signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # imports are not prepared for KeyboardInterrupt

import sys
import threading
from typing import TYPE_CHECKING

import local_server

from service.runtime.transport_choice import choose_transport

if TYPE_CHECKING:
    import subprocess

    from service.runtime.transport_choice import TransportChoice

UP_WITHIN = 60  # seconds


def main() -> int:
    """Return the exit status of the server, of a failed demonstration, or 130 after an early Ctrl-C."""
    settings = local_server.settings()
    local_server.end_if_taken(settings)
    address = local_server.address(settings)
    processes = local_server.Processes()
    server = processes.start_service()
    demo = processes.start("digitserve", "demo", "--wait", str(UP_WITHIN), DIGITS_ADDRESS=address)
    threading.Thread(target=_end_with, args=(server, demo), daemon=True).start()
    failed = demo.wait()
    if processes.stopped_by:
        processes.stop()
        return processes.stopped_status
    if failed:
        server.terminate()
    elif server.poll() is None:
        _announce(address, choose_transport(settings))
    return server.wait() or max(failed, 0)


def _announce(address: str, transport: TransportChoice) -> None:
    print(f"\nTransport: {transport.name}{f': {transport.reason}' if transport.reason else ''}.")
    if transport.remedy:
        need = "" if shutil.which("cargo") else " (needs Rust: https://rustup.rs)"
        print(f"10 times as many small calls/s: make native{need}.")
    print(f"Serving on at {address}; Ctrl-C stops it.", flush=True)
    if not local_server.log_level():
        print("Its log shows warnings alone; DIGITS_LOG_LEVEL=info shows all of it.", flush=True)


def _end_with(server: subprocess.Popen[bytes], demo: subprocess.Popen[bytes]) -> None:
    """End a demonstration whose server has ended."""
    server.wait()
    if demo.poll() is None:
        demo.terminate()


if __name__ == "__main__":
    sys.exit(main())

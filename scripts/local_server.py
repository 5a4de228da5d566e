"""What `make run` and `make play` share: the server that they start as a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from digitserve_client import DigitsClient

from commandline import proxies
from service.address import ensure_bindable, join_host_port
from service.config import SettingsError, load
from service.errors import AddressInUse

if TYPE_CHECKING:
    from service.config import Settings

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what one listens on is not what one calls)


class Processes:
    """What one command starts, and ends at SIGINT, SIGTERM or SIGHUP.

    Each has a process group of its own, so that a terminal's Ctrl-C reaches them through this one alone: a Python that
    is starting would print a traceback, and a server would count each signal twice.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self.stopped_by = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP
                signal.signal(number, self._on_signal)

    @property
    def stopped_status(self) -> int:
        """The exit status of a command that a signal ended before it had done what it was for."""
        return 128 + self.stopped_by

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `python -m` with these arguments, and these variables beside those of this process."""
        command, variables = [sys.executable, "-m", *arguments], {**os.environ, **environment}
        process = subprocess.Popen(command, env=variables, process_group=0)
        self._started.append(process)
        if self.stopped_by:  # while it was being started
            process.terminate()
        return process

    def start_service(self) -> subprocess.Popen[bytes]:
        """Start the server: it logs warnings alone, unless DIGITS_LOG_LEVEL says otherwise."""
        return self.start("service", DIGITS_LOG_LEVEL=log_level() or "warning")

    def stop(self) -> None:
        """Ask all of them to end, unless a signal has, and wait until they have."""
        if not self.stopped_by:
            for process in self._started:
                process.terminate()
        for process in self._started:
            process.wait()

    def _on_signal(self, number: int, _: object) -> None:
        self.stopped_by = self.stopped_by or number
        for process in self._started:
            process.terminate()


def log_level() -> str:
    """What the environment says of the server's log."""
    return os.environ.get("DIGITS_LOG_LEVEL", "")


def settings() -> Settings:
    """Those that the environment gives; ends the process where they cannot be. No proxy is asked for the server."""
    try:
        settings_ = load([])
    except SettingsError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    if settings_.port == 0:
        print("DIGITS_PORT is 0: choose a port, so that the server can be called there", file=sys.stderr)
        sys.exit(2)
    proxies.bypass(address(settings_).rpartition(":")[0].strip("[]"))  # the server is on this machine
    return settings_


def address(settings: Settings) -> str:
    """Where callers on this machine reach it."""
    return join_host_port(ANYWHERE.get(settings.host, settings.host), settings.port)


def end_if_taken(settings: Settings) -> None:
    """End the process with a sentence where another one listens already, whose answers would be taken for its own."""
    try:
        for host, port in ((settings.host, settings.port), (settings.metrics_host, settings.metrics_port)):
            ensure_bindable(host, port)
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
